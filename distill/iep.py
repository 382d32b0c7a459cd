"""IEP (Lee and Song, AAAI 2021): the embedding procedure of a network, by stacked PCA and message passing.

A first PCA (the leading singular vectors) turns each map into a unit vector, a second one, learned over the batches,
turns these into readable coordinates p of half as many dimensions. Between two points a message passing network carries
the affinity graph of the batch at the front point to that at the back point. Its readout ("interim"), its messages
("alteration") and, optionally, MHGD's attention ("black box") are the knowledge.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from distill import graph, svd
from distill.modules import Tree, batch_norm, dense, init_dense, init_norm, kl_rows, weight_decay
from distill.pairing import l2_normalize, same_size

ITERATIONS = 2
NEW_MEAN = 0.9  # weight of a batch's own mean in the running mean
ROUND_OFF = 1e-5  # of messages, as a share of the largest
LEAST_HEIGHT = 1e-6  # of 1 + x·c: the point opposite to c has no image on the plane


class PCA(NamedTuple):
    """State of the second PCA of one point; all zeros at the start."""

    mean: Float[Array, "1 C"]
    scale: Float[Array, "1 P"]
    basis: Float[Array, "C P"]


class Module(NamedTuple):
    """What `message_passing` and the black-box head of one pair of points are made of."""

    params: Tree
    stats: Tree


def read_by_teacher(student: Float[Array, "B H W C"], teacher_u: Float[Array, "B h w"]) -> Float[Array, "B C"]:
    """v_S = l2norm(X_Sᵀ U_T): the teacher's leading spatial vector reads the student's map; no SVD of the student.

    Where the sizes differ, the larger of the two is averaged down to the other (our choice).
    """
    student, u = same_size(student, teacher_u[..., None])
    return l2_normalize(jnp.einsum("bhwc,bhw->bc", student, u[..., 0], precision=lax.Precision.HIGHEST))


def sphere_to_plane(x: Float[Array, "B C"]) -> Float[Array, "B C"]:
    """y = 2 (x + c) / (1 + x·c) - 2c: unit x, seen from -c, on the tangent plane at c = (1, ..., 1) / √C.

    The official code writes the scale as 1 / cos²(acos(x·c) / 2); this is the same without its singular derivative.
    """
    center = jnp.full((1, x.shape[1]), 1 / jnp.sqrt(x.shape[1]), x.dtype)
    height = jnp.maximum(1 + jnp.sum(x * center, axis=1, keepdims=True), LEAST_HEIGHT)
    return 2 * (x + center) / height - 2 * center


def incremental_pca_init(channels: int) -> PCA:
    """The empty state for points of C channels, C // 2 components."""
    return PCA(jnp.zeros((1, channels)), jnp.zeros((1, channels // 2)), jnp.zeros((channels, channels // 2)))


def incremental_pca_update(state: PCA, y: Float[Array, "B C"], rank_tol: float = 0.0) -> PCA:
    """The state after a batch: the leading C // 2 components of [y - μ; (S W)ᵀ; M' - μ], and M = 0.1 M + 0.9 μ.

    μ is the batch's mean, M' the running one (μ while the state is empty). Components have the sign of
    `svd.canonical_sign`.

    Args:
      rank_tol: components with S below this share of the first are set to 0, since they are arbitrary; 0 keeps all, as
        in the official code.
    """
    y = lax.stop_gradient(y)
    mean = jnp.mean(y, axis=0, keepdims=True)
    weighted = state.scale * state.basis
    before = jnp.where(jnp.sum(weighted) == 0, mean, state.mean)
    rows = jnp.concatenate([y - mean, weighted.T, before - mean])
    found = svd.thin_svd(rows[None])
    components = state.basis.shape[1]
    basis = (found.v * svd.canonical_sign(found.v))[0, :, :components]
    scale = found.s[:, :components]
    kept = scale >= rank_tol * scale[:, :1]
    return PCA((1 - NEW_MEAN) * state.mean + NEW_MEAN * mean, scale * kept, basis * kept)


def incremental_pca_project(state: PCA, y: Float[Array, "B C"]) -> Float[Array, "B P"]:
    """p = (y - M) W; no gradient into the state. 0 while the state is empty."""
    mean, basis = lax.stop_gradient((state.mean, state.basis))
    return jnp.matmul(y - mean, basis, precision=lax.Precision.HIGHEST)


def affinity(p: Float[Array, "B P"]) -> Float[Array, "B B"]:
    """Cosines of all pairs of images."""
    unit = l2_normalize(p)
    return jnp.matmul(unit, unit.T, precision=lax.Precision.HIGHEST)


def init_module(key: Array, front: int, back: int, black_box: bool = False) -> Module:
    """Of one pair of points whose projections have `front` and `back` dimensions."""
    keys = jax.random.split(key, 4)
    params: Tree = {
        "edge": init_dense(keys[0], front, back),
        "message": init_dense(keys[1], back + 1, back),
        "gate": init_dense(keys[2], back + 1, back),
    }
    stats: Tree = {}
    for name in ("edge_norm", "message_norm", "gate_norm"):
        params[name], stats[name] = init_norm(back)
    if black_box:
        heads = graph.HEADS - 1
        params["black_box"], stats["black_box"] = graph.init_attention(keys[3], front, back, heads, extrinsic=1)
    return Module(params, stats)


class Messages(NamedTuple):
    """What a message passing network says."""

    readout: Float[Array, "B B"]
    messages: Float[Array, "B B M"]
    stats: Tree


def message_passing(
    module: Module,
    front: Float[Array, "B F"],
    back: Float[Array, "B D"],
    training: bool,
    iterations: int = ITERATIONS,
) -> Messages:
    """From the graph of the front point towards that of the back point.

        x = l2norm(BN(p_F W_e));  E_0[i, j] = D x_i o x_j;  H[i, j] = p_B,i - p_B,j;  then, with shared weights,
        z = [H, mean_c E];  m = BN(z W_m) o sigmoid(BN(z W_g));  E = E + m.  Readout: mean_c E.

    Only the channel mean of E is ever read, so no E is kept; and H W = (p W)_i - (p W)_j needs no product of pairs.

    Args:
      training: BatchNorm with the statistics of the batch's pairs, in each iteration its own; only the first iteration
        moves the running ones.

    Returns readout, messages of all iterations side by side `[B, B, iterations · D]`, new statistics.
    """
    params, stats = module
    new = dict(stats)
    edge, new["edge_norm"] = batch_norm(params["edge_norm"], stats["edge_norm"], dense(params["edge"], front), training)
    edges = affinity(edge)

    def linear(name: str, edges: Array) -> Array:
        kernel = params[name]["kernel"]
        node = jnp.matmul(back, kernel[:-1], precision=lax.Precision.HIGHEST)
        return node[:, None] - node[None, :] + edges[..., None] * kernel[-1][None, None]

    found = []
    for iteration in range(iterations):
        message, message_stats = batch_norm(
            params["message_norm"], stats["message_norm"], linear("message", edges), training, unbiased=False
        )
        gate, gate_stats = batch_norm(
            params["gate_norm"], stats["gate_norm"], linear("gate", edges), training, unbiased=False
        )
        if iteration == 0:
            new["message_norm"], new["gate_norm"] = message_stats, gate_stats
        found.append(message * jax.nn.sigmoid(gate))
        edges = edges + jnp.mean(found[-1], axis=-1)
    return Messages(edges, jnp.concatenate(found, axis=-1), new)


def extrinsic_map(messages: Float[Array, "B B M"], iterations: int = ITERATIONS) -> Float[Array, "B B"]:
    """I · mean_c(messages), the sum over iterations of the channel mean: the black-box head's last map."""
    return iterations * jnp.mean(messages, axis=-1)


def iep_module_loss(
    modules: Sequence[Module],
    projections: Sequence[Float[Array, "B _"]],
    noise: Sequence[Float[Array, "A B 1"]] | None = None,
    iterations: int = ITERATIONS,
) -> tuple[Float[Array, ""], list[Tree], list[Float[Array, ""]]]:
    """(objective with weight decay, new statistics, terms) on the teacher's projections, one a point.

    Terms, per pair: KL(affinity of the back point || readout), and with a black-box head mean_i(1 - p_B,i · u_i), where
    u is of length 1, p is not.

    Args:
      noise: standard normal [8, B, 1] per pair for the black-box head; None: there is none.
    """
    terms, moved = [], []
    for pair, (module, (front, back)) in enumerate(zip(modules, pairwise(projections), strict=True)):
        carried = message_passing(module, front, back, True, iterations)
        terms.append(kl_rows(affinity(back), carried.readout))
        new = carried.stats
        if noise is not None:
            still = lax.stop_gradient(message_passing(module, front, back, False, iterations).messages)
            extrinsic = extrinsic_map(still, iterations)[None]
            head = module.params["black_box"], module.stats["black_box"]
            loss, new["black_box"] = graph.estimation_loss(*head, front, back, noise[pair], extrinsic)
            terms.append(loss)
        moved.append(new)
    return sum(terms, jnp.zeros(())) + weight_decay([module.params for module in modules]), moved, terms


def iep_transfer_losses(
    modules: Sequence[Module],
    student: Sequence[Float[Array, "B _"]],
    teacher: Sequence[Float[Array, "B _"]],
    black_box: bool = False,
    iterations: int = ITERATIONS,
    squash: bool = True,
) -> dict[str, Float[Array, ""]]:
    """{"alteration", "interim" (, "black_box")}, summed over pairs of points; gradients reach the student alone.

    alteration: mean_ij Σ_c |M_S - M_T|;  interim: KL(readout_T || readout_S);  black box: `graph.graph_kl`.
    Modules are frozen and in inference mode.
    """
    modules, teacher = lax.stop_gradient((list(modules), list(teacher)))
    names = ("alteration", "interim", "black_box") if black_box else ("alteration", "interim")
    losses = {name: jnp.zeros(()) for name in names}
    for module, ours, theirs in zip(modules, pairwise(student), pairwise(teacher), strict=True):
        found, wanted = (message_passing(module, *who, False, iterations) for who in (ours, theirs))
        losses["alteration"] += _alteration(found.messages, wanted.messages)
        losses["interim"] += kl_rows(wanted.readout, found.readout)
        if black_box:
            head = module.params["black_box"], module.stats["black_box"]
            found, wanted = (graph.attention_logits(*head, *who, training=False)[0] for who in (ours, theirs))
            losses["black_box"] += graph.graph_kl(found, wanted, squash)
    return losses


def _alteration(student: Float[Array, "B B M"], teacher: Float[Array, "B B M"]) -> Float[Array, ""]:
    """mean_ij Σ_c |M_S - M_T|. Differences of the size of round-off have no gradient: their signs are noise."""
    difference = student - teacher
    noise = lax.stop_gradient(jnp.abs(difference) <= ROUND_OFF * jnp.max(jnp.abs(teacher)))
    difference = jnp.where(noise, lax.stop_gradient(difference), difference)
    return jnp.mean(jnp.sum(jnp.abs(difference), axis=-1))


class Procedure(NamedTuple):
    """What there is to see of N images at L points: arrays per point, and per pair of points.

    Attributes:
      positions: per point [N, 2], the first two coordinates of p.
      affinity: per point [N, N], cosines of p.
      alteration: per pair [N, N], Σ over iterations of the channel mean of the messages.
    """

    positions: list[Array]
    affinity: list[Array]
    alteration: list[Array]


def embedding_procedure(
    modules: Sequence[Module], projections: Sequence[Float[Array, "N _"]], iterations: int = ITERATIONS
) -> Procedure:
    """The interpretation of trained modules: where each image is at each point, and what moves it on."""
    carried = [
        message_passing(module, *pair, False, iterations)
        for module, pair in zip(modules, pairwise(projections), strict=True)
    ]
    return Procedure(
        [p[:, :2] for p in projections],
        [affinity(p) for p in projections],
        [extrinsic_map(each.messages, iterations) for each in carried],
    )
