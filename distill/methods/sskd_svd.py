"""KD-SVD (Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018)."""

from ml_collections import ConfigDict

from common.config import check, check_choice
from common.errors import UserError
from distill import channels, kd_svd, svd
from distill.check import check_decomposition
from distill.method import Method
from distill.pairing import check_number_of_points

FORMS = ("toolbox", "eccv")


def make(
    form: str,
    vectors: int,
    svd_gradient: str,
    svd_backend: str,
    teacher_svd: str,
    canonical_sign: bool,
    published_near_square: bool,
) -> Method:
    """Σ over consecutive points of (relations of the student's singular vectors - the teacher's)².

    Args:
      form: "toolbox" (one vector a point, see `kd_svd.kd_svd_loss`) or "eccv" (see `kd_svd.eccv_loss`).
      vectors: distilled vectors a point; the toolbox's form has 1.
      svd_gradient, svd_backend: of the student, see `svd.truncated_svd_vjp` and `svd.decompose`.
      teacher_svd: how the toolbox's form finds the teacher's vector, see `svd.leading_triplet`.
      canonical_sign: the teacher's vectors have the sign of `svd.canonical_sign`; False: the arbitrary one of the
        decomposition, as in the official codes, where in the eccv form the student's sign then turns the teacher.
      published_near_square: no gradient from maps with 2/3 < HW/C < 3/2, as in the toolbox's KD-EID.

    Raises:
      UserError: an unknown name, no vector, or several in the toolbox's form.
    """
    given = ConfigDict({"options": locals()})
    check_choice(given, "options.form", FORMS)
    check_decomposition(given)
    check(given, "options.vectors", vectors >= 1, "must be at least 1")
    check(given, "options.vectors", form == "eccv" or vectors == 1, "must be 1 where options.form is 'toolbox'")
    student_options = (svd_gradient, svd_backend, published_near_square)

    def knowledge(teacher):
        if form == "toolbox":
            found = [svd.leading_triplet(svd.feature_matrix(x), teacher_svd, canonical_sign) for x in teacher.maps]
            return tuple({"v": each.v, "s": each.s} for each in found)
        found = [kd_svd.teacher_vectors(x, vectors + 1, svd_backend, canonical_sign) for x in teacher.maps]
        return tuple({"v": v, "s": s} for v, s in found)

    def init_adapters(key, student, knowledge):
        check_number_of_points(student.maps, knowledge, least=2)
        for i, (x, point) in enumerate(zip(student.maps, knowledge, strict=True)):
            rank = min(x.shape[1] * x.shape[2], point["v"].shape[2] if form == "eccv" else x.shape[3])
            if rank < vectors:
                raise UserError(
                    f"config.options.vectors is {vectors}, but the maps of sensing point {i} have only {rank} singular "
                    "vectors; distil fewer, or choose other config.student.taps and config.teacher.taps."
                )
        return channels.init_channel_adapters(key, student.maps, [point["v"].shape[1] for point in knowledge])

    def loss(modules, adapters, student, knowledge, labels):
        maps = channels.adapt(adapters, student.maps)
        targets = [point["v"] for point in knowledge]
        if form == "toolbox":
            ours = [kd_svd.aligned_with(v, x, *student_options) for v, x in zip(targets, maps, strict=True)]
            value = kd_svd.kd_svd_loss(ours, targets)
        else:
            ours = [kd_svd.student_vectors(x, vectors + 1, *student_options) for x in maps]
            sign_to = "student" if canonical_sign else "teacher"
            value = kd_svd.eccv_loss(ours, targets, [point["s"] for point in knowledge], vectors, sign_to)
        return {"singular_vectors": value}, adapters.state

    return Method(loss, knowledge=knowledge, init_adapters=init_adapters, merged=True)
