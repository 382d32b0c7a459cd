"""The rows of the claims table: every method, its baseline and its ablations, as command lines of the embedded data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.data import fashion_mnist


@dataclass(frozen=True)
class Cell:
    """One row: a config with overrides, and which result counts."""

    name: str
    module: str
    config: str
    overrides: Mapping[str, str]
    metrics: Sequence[str]
    budget: Mapping[str, str] = field(default_factory=dict)  # more overrides, but for --quick
    phase: str = ""  # whose results count, of a run with phases
    before: "tuple[str, Cell] | None" = None  # (family, cell): the run of the same seed that this one
    # reads; `overrides` say where it lies, with {runs} and {seed} to be filled in


@dataclass(frozen=True)
class Family:
    """A method, its baseline (the first cell) and its ablations; or cells that are not compared with one another."""

    setting: str
    cells: Sequence[Cell]
    compared: bool = True
    seeds: int = 0  # at least so many, whatever --seeds says
    needs: Path | None = None  # a folder of data without which the family is left out


_ACCURACY = ("test_ensemble_accuracy", "test_best_single_accuracy")


def _fewshot(name: str, config: str, **overrides: str) -> Cell:
    return Cell(name, "fewshot.main", f"fewshot/configs/{config}.py", overrides, _ACCURACY)


_LOCALISATION = tuple(
    f"{before}{metric}" for metric in ("image_auroc", "pixel_auroc", "aupro") for before in ("", "untrained_")
)


def _anomaly(name: str, variant: str, **overrides: str) -> Cell:
    return Cell(name, "anomaly.main", "anomaly/configs/cfa.py", {"category": variant, **overrides}, _LOCALISATION)


# One TAPL step takes about eight times MAML's, so its family has a smaller budget, the same for all its cells.
_TAPL_BUDGET = {
    "glyphs.difficulty": "easy",
    "queries": "5",
    "propagation.neighbours": "10",
    "inner_steps": "3",
    "num_steps": "200",
    "tasks_per_step": "2",
    "eval_every_steps": "50",
    "save_every_steps": "50",
    "eval_episodes": "100",
    "test_episodes": "300",
    "keep_best": "3",
}


def _tapl(name: str, config: str = "tapl", **overrides: str) -> Cell:
    return replace(_fewshot(name, config, **overrides), budget=_TAPL_BUDGET)


_SMALL = ("test_accuracy", "test_accuracy_best_epoch")


def _vit_small(name: str, config: str, **overrides: str) -> Cell:
    return Cell(name, "vit_small.main", f"vit_small/configs/{config}.py", overrides, _SMALL)


_FACES = ("test_ccc", "identity_gap", "seen_ccc", "test_identity_bias")
_OFFICIAL = {"header_statistics": "all", "matching.marginal_mass": "official"}
_NO_STYLE = {"faces.curvature_std": "0.0", "faces.gain_std": "0.0"}


def _fer(name: str, config: str, **overrides: str) -> Cell:
    return Cell(name, "fer.main", f"fer/configs/{config}.py", overrides, _FACES)


_SLIM = ("test_accuracy", "test_accuracy_before_finetuning", "dense_test_accuracy", "flops_kept_ekg")
_PRUNED = (*_SLIM, "times_faster_batch1", "times_faster_batch64")


_EKG = Cell("EKG", "pruning.main", "pruning/configs/ekg.py", {}, _PRUNED, phase="finetune")


def _pruning(name: str, config: str = "ekg", **overrides: str) -> Cell:
    """The run of EKG trains the whole network of a seed; the others prune the same one."""
    fields = {"dense": "{runs}/pruning/ekg-seed{seed}", **overrides}
    return replace(_EKG, name=name, config=f"pruning/configs/{config}.py", overrides=fields, before=("pruning", _EKG))


def _ablation(search: str, finetune: str) -> Cell:
    return _pruning(f"EKG, search {search}, fine-tuning {finetune}", search_teacher=search, finetune_teacher=finetune)


_DISTILLED = ("test_accuracy", "test_accuracy_best_epoch")
_TEACHER = Cell("Teacher", "distill.main", "distill/configs/teacher.py", {}, _DISTILLED, phase="teacher")


def _distill(name: str, config: str, **overrides: str) -> Cell:
    """The teacher of a seed is trained once, for all methods and both families."""
    own = {} if config in ("student", "dml") else {"teacher_checkpoint": "{runs}/distill/teacher-seed{seed}"}
    file = f"distill/configs/{config}.py"
    before = ("distill", _TEACHER) if own else None
    return Cell(name, "distill.main", file, {**own, **overrides}, _DISTILLED, phase="student", before=before)


def _few(name: str, config: str) -> Cell:
    """A tenth of each class, 3 images, 237 times."""
    return replace(_distill(name, config, sample_share="0.1"), budget={"num_steps": "800"})


_CLASSIFICATION = (
    *(f"classification_{name}_accuracy" for name in ("probe", "knn")),
    *(f"classification_finetune_accuracy_{percent}" for percent in (10, 100)),
)
_TRANSFERS = (
    *_CLASSIFICATION,
    *(f"clustering_zero_shot_{name}" for name in ("nmi", "nmi_geometric", "pairwise_f1", "recall_at_1")),
    *(f"detection_map_{rule}" for rule in ("all", "11")),
)


def _multitask(name: str, tasks: str = "", **overrides: str) -> Cell:
    fields = {"tasks": tasks} if tasks else {}
    return Cell(name, "multitask.main", "multitask/configs/tte.py", fields | overrides, _TRANSFERS)


_NAIVE = {"metric.beta_max": "0.0", "tte.mode": "none"}

FAMILIES = {
    "fewshot": Family(
        "5-way 1-shot on embedded glyphs, scripts unseen in training",
        (
            _fewshot("MAML", "maml"),
            _fewshot("CxGrad", "cxgrad"),
            _fewshot("CxGrad, context off", "cxgrad", context="off"),
            _fewshot("CxGrad, gamma fixed to 1", "cxgrad", scaling="fixed_one"),
        ),
    ),
    "tapl": Family(
        "5-way 1-shot on embedded glyphs (easy), scripts unseen in training; 200 steps of 2 tasks, 5 queries a class, "
        "3 inner steps, 300 test episodes",
        (
            _tapl("MAML", "maml"),
            _tapl("CxGrad", "cxgrad"),
            _tapl("TAPL on MAML (transductive)"),
            _tapl("TAPL on CxGrad (transductive)", method="cxgrad"),
            _tapl(
                "TPN-style propagation (transductive)",
                **{"transduction": "propagation", "propagation.keep_diagonal": "True"},
            ),
            _tapl("TAPL, labels of the first step (transductive)", **{"tapl.pseudo_labels": "first_step"}),
            _tapl("TAPL, hard labels (transductive)", **{"tapl.gradient": "hard"}),
            _tapl("TAPL, labels constant (transductive)", **{"tapl.gradient": "soft_constant"}),
            _tapl("TAPL, no pseudo labels (transductive)", **{"tapl.query_weight": "0.0"}),
            _tapl("TAPL, length scale from 1 (transductive)", **{"propagation.initial_sigma": "1.0"}),
            _tapl("TAPL, all pairs (transductive)", **{"propagation.neighbours": "0"}),
        ),
    ),
    "anomaly": Family(
        "CFA on embedded textures with made-up defects, untrained descriptor and after 15 epochs",
        (
            *(_anomaly(f"CFA, {texture}", texture) for texture in ("brick", "gravel", "grass")),
            _anomaly("CFA, grass, nearest-EMA bank", "grass", bank="nearest_ema"),
        ),
        compared=False,
    ),
    "vit_small": Family(
        "72 embedded characters, 10 images each, 1200 steps; top-1 of the last and of the best epoch",
        (
            _vit_small("ViT", "vit"),
            _vit_small("ViT, SPT", "vit", spt="True"),
            _vit_small("ViT, LSA", "vit", lsa="True"),
            _vit_small("ViT, SPT and LSA", "vit", spt="True", lsa="True"),
            _vit_small("Swin", "swin"),
            _vit_small("Swin, SPT and LSA", "swin", spt="True", lsa="True"),
        ),
    ),
    "distill": Family(
        "72 embedded characters (hard), 30 images each, one teacher a seed; top-1 of the last and of the best epoch",
        (
            _distill("Student alone", "student"),
            _TEACHER,
            _distill("Soft logits", "soft_logits"),
            _distill("FitNet", "fitnet"),
            _distill("AT", "at"),
            _distill("FSP", "fsp"),
            _distill("RKD", "rkd"),
            _distill("FT", "ft"),
            _distill("KD-SVD", "sskd_svd"),
            _distill("MHGD", "mhgd"),
            _distill("IEP", "iepkt", **{"options.terms": "('interim','alteration')"}),
            _distill("IEP, black box", "iepkt"),
        ),
    ),
    "distill_few": Family(
        "72 embedded characters (hard), 3 images each for student and modules, 800 steps, the teacher of all 30",
        (
            _few("Student alone", "student"),
            _few("Soft logits", "soft_logits"),
            _few("AT", "at"),
            _few("RKD", "rkd"),
            _few("KD-SVD", "sskd_svd"),
            _few("MHGD", "mhgd"),
            _few("IEP, black box", "iepkt"),
        ),
    ),
    "pruning": Family(
        "ResNet-20 on 40 embedded characters (hard), 60 images each, down to half its FLOPs; top-1 of the slim network",
        (
            _EKG,
            _pruning("L1, one share for all layers", "l1"),
            _pruning("Random filters, one share for all layers", "random"),
            _ablation("none", "none"),
            _ablation("single", "none"),
            _ablation("ensemble", "none"),
            _ablation("ensemble", "single"),
            _pruning("EKG, widths in multiples of 8", **{"slim.round_to": "8"}),
        ),
    ),
    "fer": Family(
        "SYNTHETIC faces, 96 people to learn from, 48 others to test; mean CCC (times 100) of valence and arousal on "
        "people never trained on, and the gap to other frames of training people; equal numbers of updates",
        (
            _fer("Plain regression", "plain"),
            _fer("Invariance penalty, no transport", "penalty"),
            _fer("ELIM, official", "elim", **_OFFICIAL),
            _fer("ELIM, header statistics of supervised updates (default)", "elim"),
            _fer("ELIM, default, a shift per frame", "elim", **{"matching.shift": "per_sample"}),
            _fer("Plain regression, uniform sampling", "plain", sampler="uniform"),
            _fer("ELIM, official, uniform sampling", "elim", sampler="uniform", **_OFFICIAL),
            _fer("ELIM, default (balanced masses), uniform sampling", "elim", sampler="uniform"),
            _fer("No personal style: plain regression", "plain", **_NO_STYLE),
            _fer("No personal style: ELIM", "elim", **_NO_STYLE),
        ),
        seeds=5,
    ),
    "multitask": Family(
        "our configuration (the paper's is unknown): pre-training on 64 embedded characters without labels, then 20 "
        "unseen images of each to classify, characters of other scripts to cluster, drawn shapes to detect",
        (
            _multitask("scratch", "()"),
            _multitask("autoencoder alone", "('autoencoder',)", **_NAIVE),
            _multitask("rotation alone", "('rotation',)", **_NAIVE),
            _multitask("clustering alone", "('clustering',)", **_NAIVE),
            _multitask("naive sum", **_NAIVE),
            _multitask("regulariser", **{"tte.mode": "none"}),
            _multitask("TTE", **{"metric.beta_max": "0.0"}),
            _multitask("regulariser and TTE"),
            _multitask("labels (supervised)", "('supervised',)", **_NAIVE),
        ),
        compared=False,
    ),
    "multitask_variants": Family(
        "as multitask: other readings of the ensemble, other weights of the tasks, beside the sum and the method",
        (
            _multitask("naive sum", **_NAIVE),
            _multitask("regulariser and TTE"),
            _multitask("feature ensemble", **{"tte.mode": "feature_ema", "tte.alpha": "0.6"}),
            _multitask("task snapshots", **{"tte.mode": "task_snapshot", "tte.alpha": "0.5"}),
            _multitask("naive sum, uncertainty weights", **_NAIVE, **{"weighting.kind": "uncertainty"}),
            _multitask("naive sum, dynamic weights", **_NAIVE, **{"weighting.kind": "dwa"}),
            _multitask("naive sum, gradient surgery", **_NAIVE, **{"gradient.kind": "pcgrad"}),
        ),
    ),
}


def _photographs(family: str, rows: Sequence[str], metrics: Sequence[str] = (), **overrides: str) -> Family:
    """Some rows of a family on a small, fixed part of Fashion-MNIST."""
    name = f"{family}_fashion_mnist"
    fields = {"dataset": "fashion_mnist", "per_class.train": "100", "per_class.test": "200", **overrides}

    def moved(cell: Cell) -> Cell:
        if cell.before is None:
            return replace(cell, overrides={**cell.overrides, **fields})
        places = (f"{{runs}}/{cell.before[0]}/", f"{{runs}}/{name}/")
        own = {key: value.replace(*places) for key, value in cell.overrides.items()}
        return replace(cell, overrides={**own, **fields}, before=(name, moved(cell.before[1])))

    whole = FAMILIES[family]
    setting = "Fashion-MNIST (photographs), 10 classes, 100 images of each to learn from, 200 to test"
    cells = [replace(moved(cell), metrics=metrics or cell.metrics) for cell in whole.cells if cell.name in rows]
    return replace(whole, setting=setting, cells=cells, needs=fashion_mnist.DEBIAN_FOLDER)


FAMILIES |= {
    "vit_small_fashion_mnist": _photographs("vit_small", ("ViT", "ViT, SPT", "ViT, LSA", "ViT, SPT and LSA")),
    "distill_fashion_mnist": _photographs(
        "distill", ("Student alone", "Teacher", "Soft logits", "AT", "KD-SVD", "MHGD", "IEP, black box")
    ),
    "pruning_fashion_mnist": _photographs(
        "pruning", ("EKG", "L1, one share for all layers", "Random filters, one share for all layers"), metrics=_SLIM
    ),
    "multitask_fashion_mnist": _photographs(
        "multitask",
        ("scratch", "rotation alone", "naive sum", "regulariser and TTE", "labels (supervised)"),
        metrics=_CLASSIFICATION,
        transfers="('classification',)",
    ),
}
