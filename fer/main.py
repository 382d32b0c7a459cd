"""Facial expressions whoever shows them, ELIM: python -m fer.main --config=fer/configs/elim.py"""

from common import app
from fer import experiment

if __name__ == "__main__":
    app.run(experiment.build)
