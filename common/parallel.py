"""One program for one CPU, eight GPUs or a pod: `jit` over a mesh whose only axis, "data", splits the global batch.

The state is replicated, the batch is split, and XLA inserts the collectives. A train step is written as the
single-device program on the global batch, so it computes the same on any number of devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from common.errors import UserError

PyTree = Any

SHARD_ROWS_FROM_BYTES = 64 << 20  # larger data arrays are split over the devices instead of copied to each


def start_processes(multihost: bool, coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Join the other processes of a pod or cluster; must come before any other use of JAX.

    The three last arguments are found by JAX itself on TPU pods, Slurm, Open MPI and Kubernetes.
    """
    if not multihost:
        return
    if coordinator:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    else:
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise UserError(
                "--multihost found no cluster that JAX knows (TPU pod, Slurm, Open MPI, Kubernetes); "
                "give --coordinator=host:port --num_processes=N --process_id=I on every process."
            ) from error


@functools.cache
def mesh() -> Mesh:
    """All devices of all processes in one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated() -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh(), P())


def batched() -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh(), P("data"))


def is_main() -> bool:
    """Whether this process writes the files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether `flag` holds on any process; all processes must call it together."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


class Rows:
    """A host array [n, ...] whose rows are made when they are placed: each process makes those of its own devices."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[slice], np.ndarray]):
        self.shape, self.ndim, self._make = shape, len(shape), make

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self._make(index[0])  # sharded by row, so the other axes are whole


def place(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Put host arrays, equal on all processes, on the devices. Arrays that are there already stay as they are.

    On one device they get the name of the placement, without a copy: a program is compiled anew for another name.
    """

    def put(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == sharding.device_set:
            return leaf if len(sharding.device_set) > 1 else jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, sharding)
        host: Any = leaf if isinstance(leaf, Rows) else np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def place_data(data: PyTree) -> PyTree:
    """Put the data on the devices: arrays of 64 MiB or more split by row where rows divide, the others replicated."""

    def put(leaf):
        rows = np.shape(leaf)[0] if np.ndim(leaf) else 0
        large = getattr(leaf, "nbytes", 0) >= SHARD_ROWS_FROM_BYTES
        split = large and jax.device_count() > 1 and rows % jax.device_count() == 0
        return place(leaf, batched() if split else replicated())

    return jax.tree.map(put, data)


def check_batch(batch: PyTree, field: str) -> None:
    """Raise UserError unless the leading axis of every leaf divides by the number of devices."""
    for leaf in jax.tree.leaves(batch):
        size = leaf.shape[0] if leaf.ndim else 0
        if not size or size % jax.device_count():
            raise UserError(
                f"config.{field} gives a global batch of {size}, which does not divide over {jax.device_count()} "
                f"devices; choose a multiple of {jax.device_count()}."
            )


def constrain_batch(batch: PyTree) -> PyTree:
    """Inside jit: split every leaf's leading axis over the devices. Without it each device computes everything."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, batched()), batch)


def map_shards(function: Callable[[PyTree, PyTree], PyTree]) -> Callable[[PyTree, PyTree], PyTree]:
    """`function(shared, batch)` run by each device on its own part of the batch; results keep the batch axis in front.

    For programs that go through the examples one by one (`lax.map`), which would otherwise be serial over all devices.
    Gradients taken inside, with respect to `shared`, are those of the examples they are taken of, nothing is summed
    over devices; differentiated from outside, the gradient is the sum over all. No collectives belong inside.
    """
    if jax.device_count() == 1:
        return function

    # check_vma=False: custom derivatives inside `function` need not carry "varying over data" types.
    return jax.shard_map(function, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False)


def map_examples(function: Callable[[PyTree], PyTree], batch: PyTree) -> PyTree:
    """`function(batch)` of a function that treats all leading axes alike; on CPUs one example after the other.

    For decompositions of matrices. On CPUs jaxlib 0.10 has the threads that decompose a batch wait for each other's
    help, so that two devices, or two decompositions of one device, may wait forever; one matrix is never shared out.
    """
    if jax.default_backend() != "cpu":
        return function(batch)

    def one_by_one(_: PyTree, own: PyTree) -> PyTree:
        return jax.lax.map(function, own)

    divides = jax.tree.leaves(batch)[0].shape[0] % jax.device_count() == 0
    return (map_shards(one_by_one) if divides else one_by_one)((), batch)
