"""Trained networks that a later phase reads: from the run's own earlier phase, or from another run's checkpoint."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from common.checkpoint import read_run
from common.errors import UserError
from common.experiment import TrainState
from distill.method import Variables


def network_variables(state: TrainState) -> Variables:
    """The network of a finished phase."""
    return Variables(state.params["student"], state.model_state.get("student", {}))


def read_teacher(path: str, like: Variables) -> Variables:
    """The network in the last checkpoint of a run of `configs/teacher.py`, or of any run that has a phase "teacher".

    Args:
      path: the run's work directory, or the folder of the phase.
      like: shapes of the teacher that the config describes.

    Raises:
      UserError: no checkpoint there, or another network.
    """
    folder = Path(path) / "teacher" if (Path(path) / "teacher").is_dir() else Path(path)
    if not (folder / "checkpoints").is_dir():
        raise UserError(
            f"config.teacher_checkpoint is {path!r}, but there is no trained teacher; give the work directory of a run "
            "of distill/configs/teacher.py, or leave the field empty to train one."
        )
    _, tree = read_run(folder)
    if "student" not in tree.get("params", {}):
        raise UserError(f"config.teacher_checkpoint is {path!r}, but the run in {folder} is none of a teacher.")
    found = Variables(tree["params"]["student"], (tree.get("model_state") or {}).get("student") or {})
    for name, saved, wanted in (("parameters", found.params, like.params), ("statistics", found.state, like.state)):
        _check(path, name, _describe(saved), _describe(wanted))
    return jax.tree.map(jnp.asarray, found)


def _check(path: str, name: str, saved: dict[str, str], wanted: dict[str, str]) -> None:
    for leaf in sorted(saved.keys() | wanted.keys()):
        if saved.get(leaf) != wanted.get(leaf):
            raise UserError(
                f"config.teacher_checkpoint is {path!r}, but that teacher does not fit config.teacher and these data: "
                f"of its {name} {leaf} is {saved.get(leaf, 'absent')} there and {wanted.get(leaf, 'absent')} here "
                "(another network, width or number of classes)."
            )


def _describe(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): str(list(leaf.shape)) for path, leaf in leaves}
