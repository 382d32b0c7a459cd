"""IEP (Lee and Song, "Interpretable Embedding Procedure Knowledge Transfer via Stacked Principal Component Analysis and
Graph Neural Network", AAAI 2021)."""

from itertools import pairwise

import jax
from ml_collections import ConfigDict

from common.config import check, check_choice
from common.errors import UserError
from distill import channels, figures, graph, iep, svd
from distill.method import Method, Variables
from distill.pairing import check_number_of_points, check_points

TERMS = ("interim", "alteration", "black_box")


def make(
    terms: tuple[str, ...], iterations: int, squash: bool, rank_tol: float, svd_backend: str, shown_images: int
) -> Method:
    """The teacher's embedding procedure: how a batch's graph at one point becomes that of the next.

    Args:
      terms: of `iep.iep_transfer_losses`; "IEP" has interim and alteration, "IEP + black-box" all three.
      iterations: of message passing; 2.
      squash: tanh in the black box, as in the official code.
      rank_tol: components of the second PCA below this share of the first are dropped; 0 (official) keeps all.
      svd_backend: how the teacher's leading vectors are found, see `svd.leading_triplet`; the student needs none.
      shown_images: test images in the figures; 0 draws none.

    Raises:
      UserError: an unknown name, or a number out of range.
    """
    _check(ConfigDict({"options": {**locals(), "terms": tuple(terms)}}))
    black_box = "black_box" in terms

    def knowledge(teacher):
        found = [svd.leading_triplet(svd.feature_matrix(x), svd_backend) for x in teacher.maps]
        return tuple(
            {"u": each.u.reshape(x.shape[:3]), "v": each.v[..., 0]} for each, x in zip(found, teacher.maps, strict=True)
        )

    def init_modules(key, knowledge):
        check_number_of_points(knowledge, knowledge, least=2)
        widths = [point["v"].shape[1] // 2 for point in knowledge]
        if min(widths) < 2:
            raise UserError("IEP needs at least 4 channels at every sensing point; choose other config.teacher.taps.")
        params, stats = {}, {}
        for p, pair in enumerate(pairwise(widths)):
            module = iep.init_module(jax.random.fold_in(key, p), *pair, black_box)
            params[f"pair{p}"], stats[f"pair{p}"] = module
        states = [iep.incremental_pca_init(point["v"].shape[1])._asdict() for point in knowledge]
        return Variables(params, {"stats": stats, "pca": {f"point{i}": state for i, state in enumerate(states)}})

    def module_loss(modules, knowledge, key):
        planes = [iep.sphere_to_plane(point["v"]) for point in knowledge]
        projections = _project(modules, planes)
        noise = None
        if black_box:
            shape = (graph.HEADS, planes[0].shape[0], 1)
            noise = [jax.random.normal(jax.random.fold_in(key, p), shape) for p in range(len(planes) - 1)]
        objective, new, found = iep.iep_module_loss(_modules(modules), projections, noise, iterations)
        moved = [
            iep.incremental_pca_update(state, y, rank_tol)._asdict()
            for state, y in zip(_states(modules), planes, strict=True)
        ]
        names = [f"{name}{p}" for p in range(len(planes) - 1) for name in ("graph", *(["estimation"] * black_box))]
        state = {
            "stats": {f"pair{p}": stats for p, stats in enumerate(new)},
            "pca": {f"point{i}": each for i, each in enumerate(moved)},
        }
        return objective, state, dict(zip(names, found, strict=True))

    def init_adapters(key, student, knowledge):
        check_points(student.maps, tuple(point["u"] for point in knowledge), least=2)
        return channels.init_channel_adapters(key, student.maps, [point["v"].shape[1] for point in knowledge])

    def loss(modules, adapters, student, knowledge, labels):
        maps = channels.adapt(adapters, student.maps)
        read = [iep.read_by_teacher(x, point["u"]) for x, point in zip(maps, knowledge, strict=True)]
        ours, theirs = (
            _project(modules, [iep.sphere_to_plane(v) for v in vectors])
            for vectors in (read, [point["v"] for point in knowledge])
        )
        found = iep.iep_transfer_losses(_modules(modules), ours, theirs, black_box, iterations, squash)
        return {name: found[name] for name in terms}, adapters.state

    def draw(modules, knowledge, images, labels, folder):
        projections = _project(modules, [iep.sphere_to_plane(point["v"]) for point in knowledge])
        procedure = jax.jit(iep.embedding_procedure, static_argnums=2)(_modules(modules), projections, iterations)
        return figures.embedding_procedure(procedure, images, labels, shown_images, folder)

    return Method(
        loss,
        knowledge=knowledge,
        init_modules=init_modules,
        init_adapters=init_adapters,
        module_loss=module_loss,
        merged=True,
        figures=draw if shown_images else None,
    )


def _check(given: ConfigDict) -> None:
    own = given.options
    known = len(set(own.terms)) == len(own.terms) > 0 and set(own.terms) <= set(TERMS)
    check(given, "options.terms", known, f"must be one or several of {', '.join(TERMS)}")
    check_choice(given, "options.svd_backend", svd.LEADING)
    check(given, "options.iterations", own.iterations >= 1, "must be at least 1")
    check(given, "options.rank_tol", 0 <= own.rank_tol < 1, "must lie between 0 and 1")
    check(given, "options.shown_images", own.shown_images == 0 or own.shown_images >= 16, "must be 0, or at least 16")


def _modules(modules: Variables) -> list[iep.Module]:
    """One a pair."""
    stats = modules.state["stats"]
    return [iep.Module(modules.params[f"pair{p}"], stats[f"pair{p}"]) for p in range(len(stats))]


def _states(modules: Variables) -> list[iep.PCA]:
    """One a point."""
    states = modules.state["pca"]
    return [iep.PCA(**states[f"point{i}"]) for i in range(len(states))]


def _project(modules: Variables, planes: list) -> list:
    return [iep.incremental_pca_project(state, y) for state, y in zip(_states(modules), planes, strict=True)]
