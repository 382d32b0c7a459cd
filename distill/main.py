"""Knowledge distillation: python -m distill.main --config=distill/configs/mhgd.py"""

from common import app
from distill import experiment

if __name__ == "__main__":
    app.run(phases_of=experiment.phases)
