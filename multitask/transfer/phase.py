"""What the phases of all target tasks share."""

from typing import Any

from ml_collections import ConfigDict


def loop_fields(own: ConfigDict, num_steps: int) -> dict[str, Any]:
    """Fields of the training loop in the phase of a target task, from the task's group of the config."""
    return {
        "num_steps": num_steps,
        "log_every_steps": own.log_every_steps,
        "eval_every_steps": own.eval_every_steps,
        "save_every_steps": own.save_every_steps,
        "keep_best": 0,
        "resume_from": "",  # pre-training's
        "init_from": "",
    }
