"""Filter pruning with EKG: python -m pruning.main --config=pruning/configs/ekg.py"""

from common import huge_pages

if __name__ == "__main__":
    huge_pages.restart()

    from common import app  # not before: these imports take seconds
    from pruning import analysis, experiment

    app.run(phases_of=experiment.phases, modes={"analyse": analysis.analyse})
