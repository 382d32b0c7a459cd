"""SPT, shifted patch tokenisation (Lee, Lee, Song 2021, section 3.1): shifted views, patches, LayerNorm, linear map.

Images and grids are [B, H, W, C]; tokens are [B, n, D], row by row. Two forms of the same function: `tokenize` is the
paper's, `tokenize_fused` one convolution with overlapping windows, without the fivefold copy of the image.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

EPSILON = 1e-5
CARDINAL = ((0, -1), (0, 1), (-1, 0), (1, 0))  # looks left, right, up, down
DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))  # looks up-left, up-right, down-left, down-right
DIRECTIONS = {"diagonal4": DIAGONAL, "cardinal4": CARDINAL, "all8": CARDINAL + DIAGONAL}


class Weights(NamedTuple):
    """LayerNorm over a token's features, then the linear map to width D."""

    scale: Float[Array, " F"]
    offset: Float[Array, " F"]
    kernel: Float[Array, "F D"]
    bias: Float[Array, " D"]


def shift_of(patch: int, ratio: float = 0.5) -> int:
    """Pixels of a shift: floor(ratio * patch). Raises ValueError where that is nothing."""
    shift = int(ratio * patch)
    if shift < 1:
        raise ValueError(
            f"a patch of {patch} shifted by {ratio} of its side does not move; it needs at least one pixel."
        )
    return shift


def shifted_views(
    images: Float[Array, "B H W C"], shift: int, directions: str = "diagonal4"
) -> Float[Array, "B H W V"]:
    """The image and its shifted copies side by side in the channels (channel = view * C + c), zeros moving in.

    A view that looks up-left shows at (i, j) what was at (i - shift, j - shift).
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    views = [images]
    for down, right in DIRECTIONS[directions]:
        top, left = shift * (1 + down), shift * (1 + right)
        views.append(padded[:, top : top + height, left : left + width])
    return jnp.concatenate(views, axis=-1)


def patchify(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B n F"]:
    """Patches as tokens, row by row; feature = (row * patch + column) * C + channel.

    Raises ValueError for sides that the patch does not divide.
    """
    batch, height, width, channels = images.shape
    if height % patch or width % patch:
        raise ValueError(f"patches of {patch} do not divide {height} x {width}.")
    split = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def tokenize(
    images: Float[Array, "B H W C"], weights: Weights, patch: int, shift: int, directions: str = "diagonal4"
) -> Float[Array, "B n D"]:
    """SPT as in the paper: views, patches, LayerNorm (epsilon 1e-5), linear."""
    features = patchify(shifted_views(images, shift, directions), patch)
    mean = features.mean(axis=-1, keepdims=True)
    centred = features - mean
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    normal = centred * lax.rsqrt(variance + EPSILON)
    normal = normal * weights.scale[None, None] + weights.offset[None, None]
    return normal @ weights.kernel + weights.bias[None, None]


def tokenize_fused(images: Float[Array, "B H W C"], weights: Weights, patch: int) -> Float[Array, "B n D"]:
    """The same for four diagonal views shifted by half an even patch, at four fifths of the multiplications.

    The four views of a patch tile the window of twice its side around it, and the image itself is the window's centre.
    So LayerNorm's scale times the linear map is one kernel [2P, 2P, C, D] of stride P; the mean is taken out behind it.
    A constant of each image is subtracted first, which LayerNorm does not feel and which keeps the squares small.
    """
    if patch % 2:
        raise ValueError(f"the fused form needs an even patch, but it is {patch}.")
    half, channels = patch // 2, images.shape[-1]
    padded = jnp.pad(images, ((0, 0), (half, half), (half, half), (0, 0)))
    padded = padded - lax.stop_gradient(padded.mean(axis=(1, 2, 3), keepdims=True))

    scaled = weights.scale[:, None] * weights.kernel
    projected = lax.conv_general_dilated(
        padded,
        window_kernel(scaled, patch, channels).astype(padded.dtype),
        (patch, patch),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    count = 5 * patch * patch * channels
    mean = _sum_of_views(padded.sum(axis=-1), half) / count
    variance = jnp.maximum(_sum_of_views(jnp.square(padded).sum(axis=-1), half) / count - jnp.square(mean), 0.0)
    tokens = (projected - mean[..., None] * scaled.sum(axis=0)[None, None, None]) * lax.rsqrt(variance + EPSILON)[
        ..., None
    ]
    constant = weights.offset @ weights.kernel + weights.bias
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1]) + constant[None, None]


def window_kernel(kernel: Float[Array, "F D"], patch: int, channels: int) -> Float[Array, "S S C D"]:
    """The linear map over (view, pixel) features as one kernel over the window of side S = 2 * patch."""
    half = patch // 2
    rows = kernel.reshape(patch, patch, 5, channels, -1)
    quarters = [[rows[:, :, 1], rows[:, :, 2]], [rows[:, :, 3], rows[:, :, 4]]]
    window = jnp.concatenate([jnp.concatenate(pair, axis=1) for pair in quarters], axis=0)
    return window.at[half : half + patch, half : half + patch].add(rows[:, :, 0])


def _sum_of_views(padded: Float[Array, "B H W"], half: int) -> Float[Array, "B h w"]:
    """Sum over a patch's five views: its window and, once more, the window's centre."""

    def windows(size: int, image: Array) -> Array:
        return lax.reduce_window(image, 0.0, lax.add, (1, size, size), (1, 2, 2), "VALID")

    batch, height, width = padded.shape
    blocks = padded.reshape(batch, height // half, half, width // half, half).sum(axis=(2, 4))
    return windows(4, blocks) + windows(2, blocks[:, 1:-1, 1:-1])
