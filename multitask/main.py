"""Multi-task unsupervised pre-training, TTE: python -m multitask.main --config=multitask/configs/tte.py"""

from common import app
from multitask import experiment

if __name__ == "__main__":
    app.run(phases_of=experiment.phases)
