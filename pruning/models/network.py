"""One Flax network for every gate graph, full or narrowed; masks are arguments, so no choice of them recompiles it.

Parameters are nested dicts: params["BasicBlock0.0"]["conv1"]["kernel"] [h, w, in, out], ...["bn1"]["scale" | "bias"],
params["fc"]["kernel" | "bias"]; moving statistics in batch_stats under the same names, as "mean" and "var".
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pruning.graph import Block, Graph, Layer, Shape
from pruning.masks import masked_convolution, masked_dense

EPSILON = 1e-5
MOMENTUM = 0.9
_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
_ACTIVATIONS = {"relu": jax.nn.relu, "relu6": jax.nn.relu6}

Mask = Float[Any, "*k _"] | None  # as many channels as its gate has


class Conv(nn.Module):
    """A layer's convolution; see `masked_convolution`."""

    layer: Layer

    @nn.compact
    def __call__(self, x: Float[Any, "*k n h w i"], in_mask: Mask, out_mask: Mask) -> Float[Any, "*k n h2 w2 o"]:
        layer, depthwise = self.layer, self.layer.kind == "depthwise"
        shape = (layer.kernel, layer.kernel, 1 if depthwise else x.shape[-1], layer.channels)
        return masked_convolution(
            x, self.param("kernel", _INIT, shape), in_mask, out_mask, layer.stride, depthwise=depthwise
        )


class Norm(nn.Module):
    """Batch normalisation, over each candidate's images by itself.

    The variance is the biased one, as mean of squared deviations: what E[x^2] - E[x]^2 leaves of a dead channel's
    zero would be blown up 316 times. Moving statistics change only where they are mutable and no gate is masked.
    """

    batch_statistics: bool
    fixed: bool  # masks are attached: moving statistics stay
    zero_scale: bool = False  # scale begins at 0: the last one of a residual branch

    @nn.compact
    def __call__(self, x: Float[Any, "*k n h w c"]) -> Float[Any, "*k n h w c"]:
        channels = x.shape[-1]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale = self.param("scale", zeros if self.zero_scale else ones, (channels,))
        bias = self.param("bias", zeros, (channels,))
        moving_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        moving_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = moving_mean.value, moving_var.value
        if self.batch_statistics:
            axes = (-4, -3, -2)
            mean = x.mean(axes, keepdims=True)
            var = jnp.square(x - mean).mean(axes, keepdims=True)
            if not self.fixed and not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                moving_mean.value = MOMENTUM * moving_mean.value + (1 - MOMENTUM) * mean.reshape(-1)
                moving_var.value = MOMENTUM * moving_var.value + (1 - MOMENTUM) * var.reshape(-1)
        else:
            mean, var = (value[(None,) * (x.ndim - 1)] for value in (mean, var))
        scale, bias = (value[(None,) * (x.ndim - 1)] for value in (scale, bias))
        return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + bias


class GatedBlock(nn.Module):
    """A block of the graph, between gates given as masks [c] or, with a leading axis of candidates on `x`, [k, c].

    `taps` are factors of the gated activations, one for each inner gate (None at a depthwise layer) and one for the
    output: the derivative by a tap is a channel's first-order importance.
    """

    shape: Shape
    batch_statistics: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Any, "*k n h w c"],
        in_mask: Mask = None,
        inner_masks: tuple[Mask, ...] | None = None,
        out_mask: Mask = None,
        taps: tuple[Mask, ...] | None = None,
    ) -> Float[Any, "*k n h2 w2 d"]:
        shape = self.shape
        inner = (None,) * (len(shape.layers) - 1) if inner_masks is None else inner_masks
        taps = (None,) * len(shape.layers) if taps is None else taps
        fixed = out_mask is not None
        activate = _ACTIVATIONS[shape.activation]
        total = x
        if shape.projection is not None:
            total = self._unit(shape.projection, x, in_mask, out_mask, fixed, False)
        y, before = x, in_mask
        for i, layer in enumerate(shape.layers):
            last = i == len(shape.layers) - 1
            after = out_mask if last else inner[i]
            y = self._unit(layer, y, before, after, fixed, last and shape.residual)
            if not last:
                y = gate(activate(y), after, taps[i])
            before = after
        y = y + total if shape.residual else y
        y = activate(y) if shape.activate_output else y
        if shape.max_pool:
            y = pool(y)
        return gate(y, out_mask, taps[-1])

    def _unit(self, layer: Layer, x: Array, in_mask: Mask, out_mask: Mask, fixed: bool, zero_scale: bool) -> Array:
        y = Conv(layer, name=layer.name)(x, in_mask, out_mask)
        return Norm(self.batch_statistics, fixed, zero_scale, name=layer.norm)(y)


def gate(x: Float[Any, "*k n h w c"], mask: Mask, tap: Mask) -> Float[Any, "*k n h w c"]:
    """The activation times the mask and the tap, where there are any."""
    for factor in (mask, tap):
        if factor is not None:
            x = x * jnp.expand_dims(factor, (-4, -3, -2))
    return x


def pool(x: Float[Any, "*k n h w c"]) -> Float[Any, "*k n h2 w2 c"]:
    """3x3 maximum with stride 2, 'SAME' padding."""
    flat = x.reshape(-1, *x.shape[-3:])
    pooled = nn.max_pool(flat, (3, 3), (2, 2), "SAME")
    return pooled.reshape(*x.shape[:-3], *pooled.shape[1:])


class Head(nn.Module):
    """Global average pooling and the dense layer."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Any, "*k n h w c"], in_mask: Mask = None) -> Float[Any, "*k n classes"]:
        kernel = self.param("kernel", nn.initializers.normal(0.01), (x.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        pooled = x.mean((-3, -2))
        return masked_dense(pooled, kernel, in_mask) + bias[(None,) * (pooled.ndim - 1)]


class Network(nn.Module):
    """The whole graph: normalised images in, logits out.

    `masks`: gate name -> [c] (or [k, c], with images [k, n, h, w, c]), all gates or None; `taps`: see `tap_gates`.
    With `batch_statistics` normalisation uses the batch's own moments, else the moving ones.
    """

    graph: Graph
    batch_statistics: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Any, "*k n h w c"],
        masks: Mapping[str, Float[Any, "*k _"]] | None = None,
        taps: Mapping[str, Float[Any, "..."]] | None = None,
    ) -> Float[Any, "*k n classes"]:
        for block in self.graph.blocks:
            module = GatedBlock(block.shape, self.batch_statistics, name=block.name)
            x = module(x, *block_masks(block, masks), block_taps(block, taps))
        in_mask = None if masks is None else masks[self.graph.blocks[-1].out_gate]
        return Head(self.graph.num_classes, name="fc")(x, in_mask)


def block_masks(block: Block, masks: Mapping[str, Any] | None) -> tuple[Mask, tuple[Mask, ...] | None, Mask]:
    """The masks of a block's input, inside and output."""
    if masks is None:
        return None, None, None
    in_mask = None if block.in_gate is None else masks[block.in_gate]
    return in_mask, tuple(masks[name] for name in block.inner_gates), masks[block.out_gate]


def block_taps(block: Block, taps: Mapping[str, Any] | None) -> tuple[Mask, ...] | None:
    """A block's taps, in order."""
    if taps is None:
        return None
    return tuple(taps.get(name) for name in tap_names(block))


def tap_names(block: Block) -> tuple[str, ...]:
    """Names of the gated activations: those of the layers before them; the block's own for its output."""
    return (*(f"{block.name}/{layer.name}" for layer in block.shape.layers[:-1]), block.name)


def tap_gates(graph: Graph) -> dict[str, str]:
    """Tap name -> its gate, for every activation that counts as a use: depthwise ones repeat the one before."""
    found = {}
    for block in graph.blocks:
        gates = (*block.inner_gates, block.out_gate)
        for name, gate_name, layer in zip(tap_names(block), gates, block.shape.layers, strict=True):
            if layer.kind != "depthwise":
                found[name] = gate_name
    return found
