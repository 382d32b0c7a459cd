"""Vision transformers for small data, SPT and LSA: python -m vit_small.main --config=vit_small/configs/vit.py"""

from common import app
from vit_small import analysis, experiment

if __name__ == "__main__":
    app.run(experiment.build, modes={"analyse": analysis.analyse})
