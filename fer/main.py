"""Facial expressions whoever shows them, ELIM: python -m fer.main --config=fer/configs/elim.py"""

from common import huge_pages

if __name__ == "__main__":
    huge_pages.restart()

    from common import app  # not before: these imports take seconds
    from fer import experiment

    app.run(experiment.build)
