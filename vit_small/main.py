"""Vision transformers for small data, SPT and LSA: python -m vit_small.main --config=vit_small/configs/vit.py"""

from common import huge_pages

if __name__ == "__main__":
    huge_pages.restart()

    from common import app  # not before: these imports take seconds
    from vit_small import analysis, experiment

    app.run(experiment.build, modes={"analyse": analysis.analyse})
