"""Toys that exercise the shared loop.

Run: python -m tests.common.toys.main --config=tests/common/toys/config.py:host_batch
"""

from common import app
from tests.common.toys import experiment

if __name__ == "__main__":
    app.run(phases_of=experiment.phases)
