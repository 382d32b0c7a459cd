"""MHGD (Lee and Song, BMVC 2019): attention maps between the images of a batch as knowledge.

A sensing point is a unit vector per image (`kd_svd`). For a pair of consecutive points an attention network learns, on
the teacher, to predict the back vector of each image from the front vectors of the whole batch; its B x B maps, one per
head, say which images the block treats alike. The student shall have the same maps.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from distill.modules import Tree, batch_norm, dense, init_dense, init_norm, kl_rows, weight_decay
from distill.pairing import l2_normalize

HEADS = 8


def init_attention(
    key: Array, front: int, back: int, heads: int = HEADS, estimated: int | None = None, extrinsic: int = 0
) -> tuple[Tree, Tree]:
    """(parameters, moving statistics) of one attention network between points of `front` and `back` channels.

    Args:
      heads: A learned attention maps of d = (front + back) // 2 dimensions each.
      estimated: width of what the estimator predicts; None: back.
      extrinsic: further maps, given from outside, that the estimator reads.
    """
    width = (front + back) // 2
    keys = jax.random.split(key, 4)
    params: Tree = {
        "sender": init_dense(keys[0], back, width * heads),
        "receiver": init_dense(keys[1], front, width * heads),
        "hidden": init_dense(keys[2], front, width),
        "estimate": init_dense(
            keys[3], width * (heads + extrinsic), back if estimated is None else estimated, bias=True
        ),
    }
    stats = {}
    for name, channels in (("sender_norm", width * heads), ("receiver_norm", width * heads), ("hidden_norm", width)):
        params[name], stats[name] = init_norm(channels)
    return params, stats


def attention_logits(
    params: Tree, stats: Tree, front: Float[Array, "B F"], back: Float[Array, "B K"], training: bool
) -> tuple[Float[Array, "A B B"], Tree]:
    """L[a, i, j] = Σ_d sender[i, d, a] receiver[j, d, a], and new statistics; i is the back image, j the front image.

    sender = BN(v_B W_s), receiver = BN(v_F W_r), the head being the fastest axis; not divided by √d.
    """
    sender, sender_stats = batch_norm(
        params["sender_norm"], stats["sender_norm"], dense(params["sender"], back), training
    )
    receiver, receiver_stats = batch_norm(
        params["receiver_norm"], stats["receiver_norm"], dense(params["receiver"], front), training
    )
    width = params["hidden"]["kernel"].shape[1]
    shape = (front.shape[0], width, sender.shape[1] // width)
    logits = jnp.einsum("ida,jda->aij", sender.reshape(shape), receiver.reshape(shape), precision=lax.Precision.HIGHEST)
    return logits, {**stats, "sender_norm": sender_stats, "receiver_norm": receiver_stats}


def drop_heads(graph: Float[Array, "A B B"], noise: Float[Array, "A B 1"]) -> Float[Array, "A B B"]:
    """Row i of head a is kept where noise[a, i] is above its mean over the heads (about half), else 0; not rescaled."""
    return graph * (noise > jnp.mean(noise, axis=0, keepdims=True)).astype(graph.dtype)


def estimate_back_vectors(
    params: Tree, stats: Tree, graph: Float[Array, "A B B"], front: Float[Array, "B F"], training: bool
) -> tuple[Float[Array, "B K"], Tree]:
    """(u, new statistics): u = l2norm(m W_1 + b_1), m[i] the heads' Σ_j G[a, i, j] h[j] side by side,
    h = ReLU(BN(v_F W_0))."""
    hidden, new = batch_norm(params["hidden_norm"], stats["hidden_norm"], dense(params["hidden"], front), training)
    messages = jnp.einsum("aij,jd->iad", graph, jax.nn.relu(hidden), precision=lax.Precision.HIGHEST)
    estimate = dense(params["estimate"], messages.reshape(front.shape[0], -1))
    return l2_normalize(estimate), {**stats, "hidden_norm": new}


def estimation_loss(
    params: Tree,
    stats: Tree,
    front: Float[Array, "B F"],
    back: Float[Array, "B K"],
    noise: Float[Array, "A B 1"],
    extrinsic: Float[Array, "E B B"] | None = None,
) -> tuple[Float[Array, ""], Tree]:
    """(mean_i (1 - u_i · v_B,i), new statistics) of one attention network in training mode.

    Args:
      extrinsic: maps appended after the learned ones, as they are (not softmaxed); `noise` covers them too.
    """
    logits, stats = attention_logits(params, stats, front, back, training=True)
    maps = jax.nn.softmax(logits, axis=-1)
    if extrinsic is not None:
        maps = jnp.concatenate([maps, extrinsic])
    estimate, stats = estimate_back_vectors(params, stats, drop_heads(maps, noise), front, training=True)
    return jnp.mean(1 - jnp.sum(estimate * back, axis=1)), stats


def mhgd_module_loss(
    params: Sequence[Tree], stats: Sequence[Tree], vectors: Sequence[Float[Array, "B _"]], noise: Sequence[Array]
) -> tuple[Float[Array, ""], list[Tree], list[Float[Array, ""]]]:
    """(objective with weight decay, new statistics, loss of each network) on the teacher's vectors, one a point.

    Args:
      params, stats: one attention network per consecutive pair of points.
      noise: standard normal `[A, B, 1]` per network.
    """
    losses, moved = [], []
    for p, s, (front, back), z in zip(params, stats, pairwise(vectors), noise, strict=True):
        loss, new = estimation_loss(p, s, front, back, z)
        losses.append(loss)
        moved.append(new)
    return sum(losses, jnp.zeros(())) + weight_decay(params), moved, losses


def graph_kl(student: Float[Array, "A B B"], teacher: Float[Array, "A B B"], squash: bool = True) -> Float[Array, ""]:
    """Σ over heads and rows of KL(softmax tanh L_S || softmax tanh L_T): the student first, not divided by B.

    Args:
      squash: False leaves the tanh out, which the official code has and the poster does not show.
    """
    return kl_rows(jnp.tanh(student), jnp.tanh(teacher)) if squash else kl_rows(student, teacher)


def mhgd_transfer_loss(
    params: Sequence[Tree],
    stats: Sequence[Tree],
    student: Sequence[Float[Array, "B _"]],
    teacher: Sequence[Float[Array, "B _"]],
    squash: bool = True,
) -> Float[Array, ""]:
    """Σ over networks of `graph_kl`, all of them frozen and in inference mode; gradients reach the student alone."""
    params, stats, teacher = lax.stop_gradient((list(params), list(stats), list(teacher)))
    total = jnp.zeros(())
    for p, s, ours, theirs in zip(params, stats, pairwise(student), pairwise(teacher), strict=True):
        found, wanted = (attention_logits(p, s, *who, training=False)[0] for who in (ours, theirs))
        total += graph_kl(found, wanted, squash)
    return total
