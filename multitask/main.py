"""Multi-task unsupervised pre-training, TTE: python -m multitask.main --config=multitask/configs/tte.py"""

from common import huge_pages

if __name__ == "__main__":
    huge_pages.restart()

    from common import app  # not before: these imports take seconds
    from multitask import experiment

    app.run(phases_of=experiment.phases)
