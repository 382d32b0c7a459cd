"""Checkpoints: the latest and the best k, written in the background by Orbax, checked when read."""

import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from common import parallel
from common.errors import UserError
from common.metrics import select_top

PyTree = Any
T = TypeVar("T")

# What Orbax, TensorStore and JSON raise on damaged files; there is no common base class.
_DAMAGE = (ValueError, OSError, KeyError, RuntimeError, TypeError)


class _Manager(ocp.CheckpointManager):
    """Orbax's, which itself opens no folder in which the metric of any step is damaged: here such a step has none."""

    def metrics(self, step: int) -> dict[str, float] | None:
        try:
            return self.checked_metrics(step)
        except _DAMAGE:
            return None

    def checked_metrics(self, step: int) -> dict[str, float] | None:
        """{"best": value}, or None for a step without; raises one of _DAMAGE."""
        found: Any = super().metrics(step)
        if found is not None:
            float(found["best"])
        return found


class Checkpoints:
    """The checkpoints of one work directory; step = number of steps done.

    Each holds the state tree and a small JSON record `meta`. The two latest and the `keep_best` best by the metric
    "best" are kept (of equals, the later). With `read_only` nothing in the folder is changed: it may belong to
    another run, even one that is still training.
    """

    def __init__(self, folder: Path, keep_best: int = 0, read_only: bool = False):
        self.folder, self._read_only = folder, read_only
        if not read_only:
            self._settle_replaced()
        policies = [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(get_metric_fn=_best, n=keep_best, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=_best,  # without it Orbax does not store the metric
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        # Named handlers, because without them the shapes of a checkpoint are unknown until something was restored.
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self.manager = _Manager(folder.absolute(), options=options, item_handlers=handlers)

    def save(self, step: int, tree: PyTree, meta: Mapping[str, Any], best: float | None = None) -> None:
        """Start writing; called by all processes. `best`: the value that the best k are chosen by, larger is better.

        A checkpoint of the same step stays in `replaced/` until the new one is whole, which is waited for.
        """
        # A copy, because the loop donates its state to the next step while Orbax is still reading it.
        tree = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array | np.ndarray) else leaf, tree)
        record = {**meta, "leaves": _describe(tree), "checksums": _checksums(tree)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(record))
        with self._writing():
            again = step in self.manager.all_steps()
            if again:
                self._move(step, self.folder / "replaced" / str(step))
            self.manager.save(step, args=args, metrics=None if best is None else {"best": best}, force=True)
            if again:
                self.manager.wait_until_finished()
                self._settle_replaced()

    def steps(self) -> list[int]:
        """All finished steps in ascending order."""
        return sorted(self.manager.all_steps())

    def best_steps(self, count: int) -> list[int]:
        """The `count` steps with the highest "best", best first; of equals the later first.

        Raises UserError where that of a step is damaged.
        """
        scored = {}
        for step in self.steps():
            try:
                metrics = self.manager.checked_metrics(step)
            except _DAMAGE as error:
                raise UserError(
                    f"The file metrics in {self.folder / str(step)} cannot be read ({type(error).__name__}), so it is "
                    "unknown which checkpoint is the best; copy a good one there, or take the last checkpoint."
                ) from error
            if metrics is not None:
                scored[step] = metrics["best"]
        return [list(scored)[place] for place in select_top(list(scored.values()), count)]

    def restore(self, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The state tree of `step` with the shapes, types and shardings of `like`, and its meta record.

        Raises UserError if the leaves differ from `like` (Orbax would convert types in silence).
        """
        meta = self._meta(step)
        self._check_fits(step, meta.pop("leaves"), _describe(like))
        tree = self._read(step, like)
        _check_sums(tree, meta.pop("checksums"))
        return tree, meta

    def restore_as_saved(self, step: int) -> PyTree:
        """The state tree of `step` as nested dicts, replicated, without knowing its structure beforehand.

        64-bit numbers stay so in a 32-bit process too. Raises UserError if it is damaged.
        """
        try:
            return self._as_saved(step)
        except _DAMAGE as error:
            raise UserError(
                f"The checkpoint {self.folder / str(step)} cannot be read ({type(error).__name__}); copy a good one "
                f"there, or remove {self.folder.parent / 'DONE'} to train on from the checkpoint before it."
            ) from error

    def _as_saved(self, step: int) -> PyTree:
        with jax.enable_x64(True):
            tree = self._read(step, self.manager.item_metadata(step)["state"])
            _check_sums(tree, self._meta(step)["checksums"])
        return tree

    def _read(self, step: int, like: PyTree) -> PyTree:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like)))
        return self.manager.restore(step, args=args)["state"]

    def restore_latest(self, like: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """The latest readable checkpoint as (step, tree, meta), or None if there never was one.

        A damaged one is moved to `damaged/` with a warning, and the one before it is taken. Raises UserError if all
        are damaged.
        """
        found = self._latest_readable(lambda step: self.restore(step, like))
        return None if found is None else (found[0], *found[1])

    def restore_latest_params(self, like: PyTree) -> PyTree | None:
        """`params` of the latest readable checkpoint, whatever optimiser it was trained with; `like`: a whole state."""

        def restore(step: int) -> PyTree:
            leaves = [
                {path: leaf for path, leaf in described.items() if path.startswith(".params")}
                for described in (self._meta(step)["leaves"], _describe(like))
            ]
            self._check_fits(step, *leaves)
            # Parameters are nested dicts, so the order of their leaves does not depend on how they were read.
            return jax.tree.unflatten(jax.tree.structure(like.params), jax.tree.leaves(self._as_saved(step)["params"]))

        found = self._latest_readable(restore)
        return None if found is None else found[1]

    def _latest_readable(self, read: Callable[[int], T]) -> tuple[int, T] | None:
        for step in reversed(self.steps()):
            try:
                return step, read(step)
            except UserError:
                raise
            except _DAMAGE as error:
                print(
                    f"Warning: the checkpoint {self.folder / str(step)} cannot be read ({type(error).__name__}); "
                    f"{'' if self._read_only else 'it is moved to the folder damaged beside it, and '}"
                    "the one before it is used.",
                    file=sys.stderr,
                )
                if not self._read_only:
                    self._set_aside(step)
        # Counted on disk: a second attempt must not take a run whose checkpoints were all set aside for a new one.
        if self.steps() or any((self.folder / "damaged").glob("*")):
            raise UserError(
                f"None of the checkpoints in {self.folder} can be read (see its folder 'damaged'); "
                "copy a good one back, or start anew with another --workdir."
            )
        return None

    def _meta(self, step: int) -> dict[str, Any]:
        self.manager.checked_metrics(step)  # a checkpoint is whole, or damaged
        return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def _check_fits(self, step: int, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                raise UserError(
                    f"The checkpoint {self.folder / str(step)} does not fit this config: {path} is "
                    f"{saved.get(path, 'absent')} there and {wanted.get(path, 'absent')} here; use the config it was "
                    "made with, or another --workdir."
                )

    def _set_aside(self, step: int) -> None:
        aside, number = self.folder / "damaged" / str(step), 1
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{step}-{number}")
        self._move(step, aside)

    def _move(self, step: int, aside: Path) -> None:
        if parallel.is_main():
            aside.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(aside)
        parallel.barrier(f"moved {step} to {aside.parent.name}")
        self.manager.reload()

    def _settle_replaced(self) -> None:
        """Remove what was replaced; where a session ended before the new one was whole, take the old one back."""
        if parallel.is_main():
            for old in (self.folder / "replaced").glob("*"):
                new = self.folder / old.name
                shutil.rmtree(old) if new.exists() else old.rename(new)
        parallel.barrier("replaced checkpoints")

    def wait(self) -> None:
        """Block until everything is on disk."""
        with self._writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        with self._writing():
            self.manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk and its like, which the thread in the background meets and Orbax tells of later, as UserError."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            code = error.errno if isinstance(error, OSError) else re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            reason = os.strerror(code if isinstance(code, int) else int(code[1]))
            raise UserError(
                f"A checkpoint cannot be written to {self.folder} ({reason}); mend that and run the same command: it "
                "resumes from the last checkpoint that is whole."
            ) from error


def read_run(folder: Path, which: str = "last", absent: str = "") -> tuple[int, PyTree]:
    """(step, state tree as saved) of the "last" or the "best" checkpoint of the run in `folder`.

    Raises UserError if there is none (`absent`: what to say instead of the usual), or it is damaged.
    """
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        steps = checkpoints.best_steps(1) if which == "best" else checkpoints.steps()[-1:]
        if not steps:
            found = "No checkpoint has been evaluated yet" if which == "best" else "There is no checkpoint"
            raise UserError(absent or f"{found} in {folder}; train first, with the same command and --mode=train.")
        return steps[0], checkpoints.restore_as_saved(steps[0])
    finally:
        checkpoints.close()


def _best(metrics: Mapping[str, float]) -> float:
    return metrics["best"]


def _describe(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _checksums(tree: PyTree) -> dict[str, int]:
    """CRC-32 of each leaf's bytes: a changed byte on the disk can give other numbers without any error."""
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            continue  # no process holds all of it
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        # Not keystr's usual form: the names of a structure read back as plain dicts must be the same.
        sums[jax.tree_util.keystr(path, simple=True, separator="/")] = zlib.crc32(np.asarray(leaf).tobytes())
    return sums


def _check_sums(tree: PyTree, saved: Mapping[str, int]) -> None:
    """Raise ValueError, which counts as damage, unless every leaf is what was saved."""
    found = _checksums(tree)
    changed = [path for path in saved if found.get(path) != saved[path]]
    if changed:
        raise ValueError(f"{changed[0]} is not what was saved")


def _abstract(tree: PyTree) -> PyTree:
    def abstract(leaf):
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, jax.sharding.Sharding):
            sharding = parallel.replicated()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree)
