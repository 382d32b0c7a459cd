"""Anomaly localisation by CFA: python -m anomaly.main --config=anomaly/configs/cfa.py"""

from common import huge_pages

if __name__ == "__main__":
    huge_pages.restart()

    from anomaly import experiment
    from common import app  # not before: these imports take seconds

    app.run(phases_of=experiment.phases)
