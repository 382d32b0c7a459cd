"""Knowledge distillation: python -m distill.main --config=distill/configs/mhgd.py"""

from common import huge_pages

if __name__ == "__main__":
    huge_pages.restart()

    from common import app  # not before: these imports take seconds
    from distill import experiment

    app.run(phases_of=experiment.phases)
