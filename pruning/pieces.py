"""A network's blocks as separate compiled programs, forwards and backwards, with the batch's statistics.

Blocks of one shape share a program: a ResNet-56 needs seven of them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from common import parallel
from pruning.graph import Block, Shape
from pruning.models.network import GatedBlock, Head
from pruning.objective import score_sum

BlockMasks = tuple[Any, Any, Any]  # of the input, inside, of the output


def variables_of(block: Block, variables: Any) -> dict[str, Any]:
    """A block's own part of the network's variables."""
    return {kind: variables[kind][block.name] for kind in ("params", "batch_stats")}


@jax.jit
def split_over_devices(images: Float[Any, "n h w c"]) -> Float[Any, "n h w c"]:
    """The same images; what is computed from them stays split."""
    return parallel.constrain_batch(images)


@partial(jax.jit, static_argnums=0)
def run_block(shape: Shape, variables: Any, x: Float[Any, "n h w c"], masks: BlockMasks) -> Float[Any, "n h2 w2 d"]:
    """The block's output."""
    y: Any = GatedBlock(shape, batch_statistics=True).apply(variables, x, *masks)
    return y


@partial(jax.jit, static_argnums=0)
def run_head(num_classes: int, params: Any, x: Float[Any, "n h w c"], mask: Any) -> Float[Any, "n classes"]:
    """Logits."""
    y: Any = Head(num_classes).apply({"params": params}, x, mask)
    return y


@partial(jax.jit, static_argnums=0)
def pull_head(
    num_classes: int, params: Any, x: Float[Any, "n h w c"], mask: Any, labels: Int[Any, " n"], teacher: Any
) -> Float[Any, "n h w c"]:
    """Derivative of the search score, summed over the batch, by the last block's output."""
    return jax.grad(lambda x: score_sum(run_head(num_classes, params, x, mask), labels, teacher))(x)


@partial(jax.jit, static_argnums=0)
def pull_block(
    shape: Shape, variables: Any, x: Float[Any, "n h w c"], masks: BlockMasks, slope: Float[Any, "n h2 w2 d"]
) -> tuple[Float[Any, "n h w c"], tuple[Float[Any, " _"], ...]]:
    """(by the input, by each tap) from the derivative by the block's output."""
    _, inner, out = masks
    taps = tuple(jnp.ones_like(mask) for mask in (*inner, out))

    def output(x, taps):
        y: Any = GatedBlock(shape, batch_statistics=True).apply(variables, x, *masks, taps)
        return y

    return jax.vjp(output, x, taps)[1](slope)
