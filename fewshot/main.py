"""Few-shot learning by MAML, its family, CxGrad and TAPL: python -m fewshot.main --config=fewshot/configs/cxgrad.py

A finished run is evaluated again by --mode=eval, and its inner loop is looked into by --mode=analyse."""

from common import huge_pages

if __name__ == "__main__":
    huge_pages.restart()

    from common import app  # not before: these imports take seconds
    from fewshot import data, experiment

    app.run(experiment.build, modes={"analyse": experiment.analyse}, evaluation_fields=data.EVALUATION_FIELDS)
