"""The ten methods: whose they are, what is claimed for them and how sure that is, and which rows of the claims table
are to be set beside it."""

from typing import NamedTuple


class Value(NamedTuple):
    """A cell of the claims table."""

    row: str
    metric: str


class Method(NamedTuple):
    """`certainty` says where the claim was read: nothing is repeated here from memory."""

    name: str
    title: str  # as far as known to us
    authors: tuple[str, ...]  # likewise
    venue: str
    arxiv: str
    folder: str
    config: str
    claim: str
    certainty: str
    family: str  # of the claims table
    baseline: Value
    own: Value


METHODS = (
    Method(
        "CxGrad",
        "CxGrad: contextual gradient scaling for few-shot learning",
        ("Lee", "Lee", "Song"),
        "WACV 2022",
        "2110.10353",
        "fewshot",
        "cxgrad",
        "better than MAML in the domain and across domains; Conv4, 5-way 5-shot: mini-ImageNet 69.82 %, tiered 73.55 %",
        "third-party listing",
        "fewshot",
        Value("MAML", "test_best_single_accuracy"),
        Value("CxGrad", "test_best_single_accuracy"),
    ),
    Method(
        "TAPL",
        "TAPL",
        ("Lee", "Lee", "Song"),
        "2023",
        "2304.11173",
        "fewshot",
        "tapl",
        "better than the state of the art of its time in 5-way 1-shot; numbers unknown to us",
        "abstract",
        "tapl",
        Value("MAML", "test_best_single_accuracy"),
        Value("TAPL on MAML (transductive)", "test_best_single_accuracy"),
    ),
    Method(
        "CFA",
        "CFA: Coupled-hypersphere-based Feature Adaptation for Target-Oriented Anomaly Localization",
        ("S. Lee", "S. Lee", "B. C. Song"),
        "IEEE Access 2022",
        "2206.04325",
        "anomaly",
        "cfa",
        "MVTec AD, image / pixel AUROC 99.5 / 98.5 % (CFA++, best epochs on the test set)",
        "abstract, official README",
        "anomaly",
        Value("CFA, brick", "untrained_image_auroc"),
        Value("CFA, brick", "image_auroc"),
    ),
    Method(
        "SPT and LSA",
        "Vision Transformer for Small-Size Datasets",
        ("Lee", "Lee", "Song"),
        "2021",
        "2112.13492",
        "vit_small",
        "vit",
        "Tiny-ImageNet: +2.96 points, mean of five architectures; +4.08 for Swin",
        "abstract, official README",
        "vit_small",
        Value("ViT", "test_accuracy"),
        Value("ViT, SPT and LSA", "test_accuracy"),
    ),
    Method(
        "KD-SVD",
        "Self-supervised Knowledge Distillation Using Singular Value Decomposition",
        ("Lee", "Kim", "Song"),
        "ECCV 2018",
        "",
        "distill",
        "sskd_svd",
        "CIFAR-100, VGG: student 61.37 %, with KD-SVD 65.05 %, teacher 64.44 %",
        "official README",
        "distill",
        Value("Student alone", "test_accuracy"),
        Value("KD-SVD", "test_accuracy"),
    ),
    Method(
        "MHGD",
        "Graph-based Knowledge Distillation by Multi-head Attention Network",
        ("Lee", "Song"),
        "BMVC 2019",
        "",
        "distill",
        "mhgd",
        "CIFAR-100, VGG: +7.05 points over the student, +2.46 over the best competitor",
        "abstract, authors' slides",
        "distill",
        Value("Student alone", "test_accuracy"),
        Value("MHGD", "test_accuracy"),
    ),
    Method(
        "IEP",
        "Interpretable Embedding Procedure Knowledge Transfer via Stacked PCA and GNN",
        ("Lee", "Song"),
        "AAAI 2021",
        "",
        "distill",
        "iepkt",
        "CIFAR-100, WRN-16-4: student 76.09 %, with IEP and the black box 78.37 %",
        "authors' poster or slides",
        "distill",
        Value("Student alone", "test_accuracy"),
        Value("IEP, black box", "test_accuracy"),
    ),
    Method(
        "ELIM",
        "Optimal Transport-based Identity Matching for Identity-invariant Facial Expression Recognition",
        ("D. Kim", "B. C. Song"),
        "NeurIPS 2022",
        "2209.12172",
        "fer",
        "elim",
        "PCC and CCC up to 10 % or more above the next best, in the wild; tables could not be read",
        "abstract",
        "fer",
        Value("Plain regression", "test_ccc"),
        Value("ELIM, header statistics of supervised updates (default)", "test_ccc"),
    ),
    Method(
        "EKG",
        "Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning",
        ("S. Lee", "B. C. Song"),
        "ECCV 2022",
        "2203.02651",
        "pruning",
        "ekg",
        "CIFAR-10, ResNet-56: whole network 93.84 %, pruned 94.09 %",
        "authors' poster",
        "pruning",
        Value("L1, one share for all layers", "test_accuracy"),
        Value("EKG", "test_accuracy"),
    ),
    Method(
        "TTE",
        "Metric-based Regularization and Temporal Ensemble for Multi-task Learning using Heterogeneous Unsupervised "
        "Tasks",
        ("D. H. Kim", "S. H. Lee", "B. C. Song"),
        "ICCV Workshops 2019",
        "1908.11024",
        "multitask",
        "tte",
        "classification, clustering and detection improve over the state of the art of its time; numbers unknown to us",
        "abstract",
        "multitask",
        Value("naive sum", "classification_probe_accuracy"),
        Value("regulariser and TTE", "classification_probe_accuracy"),
    ),
)
