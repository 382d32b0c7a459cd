"""MHGD (Lee and Song, "Graph-based Knowledge Distillation by Multi-head Attention Network", BMVC 2019)."""

from itertools import pairwise

import jax
from ml_collections import ConfigDict

from common.config import check
from distill import channels, graph, kd_svd, svd
from distill.check import check_decomposition
from distill.method import Method, Variables
from distill.pairing import check_number_of_points


def make(
    heads: int,
    squash: bool,
    svd_gradient: str,
    svd_backend: str,
    teacher_svd: str,
    canonical_sign: bool,
    published_near_square: bool,
) -> Method:
    """Attention maps between the images of a batch, learned on the teacher in the phase of the modules.

    Args:
      heads: attention maps of each pair of consecutive points; 8.
      squash: tanh of the logits before the softmax, as in the official code; the poster does not show it.
      svd_gradient, svd_backend, teacher_svd, canonical_sign, published_near_square: as in `methods.sskd_svd`.

    Raises:
      UserError: an unknown name, or no head.
    """
    given = ConfigDict({"options": locals()})
    check_decomposition(given)
    check(given, "options.heads", heads >= 2, "must be at least 2, since about half of the heads are dropped")

    def knowledge(teacher):
        found = [svd.leading_triplet(svd.feature_matrix(x), teacher_svd, canonical_sign) for x in teacher.maps]
        return tuple(each.v[..., 0] for each in found)

    def init_modules(key, knowledge):
        check_number_of_points(knowledge, knowledge, least=2)
        params, stats = {}, {}
        for p, (front, back) in enumerate(pairwise(knowledge)):
            widths = front.shape[1], back.shape[1]
            params[f"pair{p}"], stats[f"pair{p}"] = graph.init_attention(jax.random.fold_in(key, p), *widths, heads)
        return Variables(params, stats)

    def module_loss(modules, knowledge, key):
        batch = knowledge[0].shape[0]
        noise = [jax.random.normal(jax.random.fold_in(key, p), (heads, batch, 1)) for p in range(len(modules.params))]
        objective, new, losses = graph.mhgd_module_loss(*_listed(modules), knowledge, noise)
        metrics = {f"estimation{p}": loss for p, loss in enumerate(losses)}
        return objective, {f"pair{p}": stats for p, stats in enumerate(new)}, metrics

    def init_adapters(key, student, knowledge):
        check_number_of_points(student.maps, knowledge, least=2)
        return channels.init_channel_adapters(key, student.maps, [v.shape[1] for v in knowledge])

    def loss(modules, adapters, student, knowledge, labels):
        ours = [
            kd_svd.aligned_with(v[..., None], x, svd_gradient, svd_backend, published_near_square)[..., 0]
            for v, x in zip(knowledge, channels.adapt(adapters, student.maps), strict=True)
        ]
        return {"graphs": graph.mhgd_transfer_loss(*_listed(modules), ours, knowledge, squash)}, adapters.state

    return Method(
        loss,
        knowledge=knowledge,
        init_modules=init_modules,
        init_adapters=init_adapters,
        module_loss=module_loss,
        merged=True,
    )


def _listed(modules: Variables) -> tuple[list, list]:
    """Parameters and statistics, one of each a pair."""
    names = [f"pair{p}" for p in range(len(modules.params))]
    return [modules.params[name] for name in names], [modules.state[name] for name in names]
