"""Anomaly localisation by CFA: python -m anomaly.main --config=anomaly/configs/cfa.py"""

from anomaly import experiment
from common import app

if __name__ == "__main__":
    app.run(phases_of=experiment.phases)
