"""Few-shot learning by MAML, its family, CxGrad and TAPL: python -m fewshot.main --config=fewshot/configs/cxgrad.py

A finished run is evaluated again by --mode=eval, and its inner loop is looked into by --mode=analyse."""

from common import app
from fewshot import data, experiment

if __name__ == "__main__":
    app.run(experiment.build, modes={"analyse": experiment.analyse}, evaluation_fields=data.EVALUATION_FIELDS)
