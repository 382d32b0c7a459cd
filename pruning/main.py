"""Filter pruning with EKG: python -m pruning.main --config=pruning/configs/ekg.py"""

from common import app
from pruning import analysis, experiment

if __name__ == "__main__":
    app.run(phases_of=experiment.phases, modes={"analyse": analysis.analyse})
