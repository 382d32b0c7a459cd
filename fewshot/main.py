"""Few-shot learning by MAML, its family and CxGrad: python -m fewshot.main --config=fewshot/configs/cxgrad.py"""

from common import app
from fewshot import data, experiment

if __name__ == "__main__":
    app.run(experiment.build, evaluation_fields=data.EVALUATION_FIELDS)
