"""ELIM (Kim and Song, "Optimal Transport-based Identity Matching for Identity-invariant Facial Expression
Recognition", NeurIPS 2022, arXiv 2209.12172): valence and arousal from a face, whoever it is.

Run:    python -m fer.main --config=fer/configs/elim.py
Smoke:  python -m fer.main --config=fer/configs/elim.py:smoke
Data:   SYNTHETIC cartoon faces (embedded, no download): 96 people to learn from, 48 others to test.
Expect: see fer/README.md (ours; the paper's tables are on licensed data that we do not have). Minutes on two cores.

Variants with settings of the official code, whose data you must have (fer/README.md says how they are read):
    :aff_wild2_alexnet  :aff_wild2_resnet18  :aff_wild2_mixer  :afew_va_alexnet (first release)  :affectnet_alexnet
and :official, the embedded data with the official choices of the method; :category, categories with age bins as
identities; :age, valence and arousal with age bins as identities.
"""

from ml_collections import ConfigDict

from common.config import select

# What the official code does where the embedded default does otherwise.
OFFICIAL = {
    "header_statistics": "all",
    "matching.marginal_mass": "official",
    "matching.solver": "official",
    "matching.shift": "first_sample",
}
PUBLISHED = {
    **OFFICIAL,
    "image_size": 256,
    "augmentation.crop": 224,
    "augmentation.crop_padding": 0,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "sampler": "uniform",
    "identities": 10,
    "warm_up_start": 5,
    "warm_up_full": 50,
    "model.latent": 512,
    "model.header_factor": 20,
    "model.dropout": 0.5,
    "optimizer.b1": 0.5,
    "optimizer.b2": 0.99,
    "optimizer.learning_rate": 5e-5,
    "optimizer.decay_steps": (500, 2500, 5000, 7500, 10000),
    "header_rate_factor": 0.2,
    "eval_batch_size": 64,
    "official_metrics": True,
    "log_every_steps": 50,
    "num_steps": 15_000,
    "eval_every_steps": 250,
    "save_every_steps": 250,
}
ALEXNET = {"model.backbone": "alexnet", "batch_size": 512}
CATEGORY = {"task": "category", "identity": "age", "best_metric": "accuracy"}
VARIANTS = {
    "smoke": {
        "faces.train_identities": 4,
        "faces.validation_identities": 2,
        "faces.test_identities": 2,
        "faces.frames": 20,
        "image_size": 24,
        "model.filters": (4, 8),
        "model.latent": 8,
        "model.header_factor": 4,
        "batch_identities": 4,
        "batch_size": 16,
        "batch_frames": 4,
        "identities": 3,
        "warm_up_start": 1,
        "warm_up_full": 3,
        "num_steps": 4,
        "optimizer.decay_steps": (3,),
        "eval_batch_size": 16,
        "log_every_steps": 1,
        "eval_every_steps": 2,
        "save_every_steps": 2,
    },
    "official": OFFICIAL,
    "category": CATEGORY,
    "age": {"identity": "age"},
    "aff_wild2_alexnet": {**PUBLISHED, **ALEXNET, "dataset": "aff_wild2", "table.stream": True},
    "aff_wild2_resnet18": {
        **PUBLISHED,
        "dataset": "aff_wild2",
        "table.stream": True,
        "model.backbone": "resnet18",
        "encoder_weights": "resnet18:tv_in1k",
        "batch_size": 16,
        "eval_every_steps": 15,
        "save_every_steps": 150,
    },
    "aff_wild2_mixer": {
        **PUBLISHED,
        "dataset": "aff_wild2",
        "table.stream": True,
        "model.backbone": "mixer",
        "batch_size": 128,
    },
    "afew_va_alexnet": {
        **PUBLISHED,
        **ALEXNET,
        "dataset": "afew_va",
        "batch_size": 256,
        "identities": 5,
        "alignment": "gumbel",
        "top_k": 2,
        "warm_up_start": 10,
        "warm_up_full": 20,
        "matching_weight": 1e-3,
        "optimizer.b2": 0.9,
        "optimizer.decay_steps": (5000, 25000, 45000, 65000),
        "table.label_scale": 0.1,
        "eval_every_steps": 20,
        "save_every_steps": 200,
    },
    "affectnet_alexnet": {**PUBLISHED, **ALEXNET, **CATEGORY, "dataset": "affectnet", "table.stream": True},
}


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "elim"
    config.variant = ""
    config.seed = 0

    # The method
    config.method = "elim"  # "plain": two supervised updates; "penalty": they also punish each person's mean residual
    config.updates = 2  # in an iteration; 1 for the plain regressor alone
    config.task = "valence_arousal"  # or "category"
    config.num_classes = 7  # of "category"; 8 keeps contempt
    config.identity = "person"  # whom frames are grouped by; "age": bins of 18, 30, 40, 50, 60, 85 years
    config.identities = 6  # N, drawn in each iteration: one reference, the others targets
    config.alignment = "none"  # "max_filling", "gumbel" (a draw of top_k frames)
    config.top_k = 4
    config.matching_weight = 0.5  # of the second update's loss
    config.warm_up_start = 5  # iteration of the first second update
    config.warm_up_full = 50  # iteration from which on it has its whole weight
    config.encoder_clip = 1.0  # norm of the encoder's gradient in the second update; 0: not clipped
    config.header_statistics = "supervised_only"  # which updates move the header's running statistics; official: "all"
    config.penalty = 3.0  # weight in "penalty"
    config.guard = True  # a batch of equal labels has no correlation: count its squared error alone
    config.matching = ConfigDict(
        {
            "weighting": "relevance",  # or "norm"
            "marginal_mass": "balanced",  # official: "official", masses that differ with the groups' sizes
            "solver": "official",  # or "ott": without the additive epsilons
            "shift": "first_sample",  # official; "per_sample" (the paper's figure), "mean"
            "sharpness": 5.0,
            "iterations": 5,
            "epsilon": 1e-6,
            "guard": True,  # uniform masses where all weights are zero, instead of 0 / 0
        }
    )

    # Data
    config.dataset = "faces"  # synthetic; or "csv", "afew_va", "affectnet", "aff_wild2"
    config.dataset_path = ""
    config.faces = ConfigDict(  # read by dataset "faces" only
        {
            "train_identities": 96,
            "validation_identities": 24,
            "test_identities": 48,
            "frames": 40,
            "confounding": 1.0,
            "curvature_std": 0.35,  # with gain_std 0 too: no personal style, the control
            "gain_std": 0.30,
            "seed": 0,
        }
    )
    config.table = ConfigDict(  # read by the other data sets
        {
            "label_scale": 1.0,  # 0.1 for labels from -10 to 10
            "folds": 6,  # of people, where the file gives no splits
            "fold": 0,  # that is tested
            "seen": True,  # keep some frames of training people out, to measure the gap
            "stream": False,  # read pictures in each step, for sets that do not fit into memory
        }
    )
    config.image_size = 48
    config.mean = ()  # of normalisation, per channel in [0, 1]; (): measured on the training frames
    config.std = ()
    config.sampler = "identity_balanced"  # or "uniform"
    config.batch_identities = 12  # of "identity_balanced"
    config.batch_frames = 8
    config.batch_size = 96  # of "uniform"
    config.augmentation = ConfigDict(
        {"crop": 0, "crop_padding": 2, "flip": 0.5}  # crop: side of a random part, 0 for padding and shifting
    )

    # Network
    config.model = ConfigDict(
        {
            "backbone": "cnn",  # or "alexnet", "resnet18", "mixer"
            "latent": 64,
            "header_factor": 4,  # the header is so many times as wide as the latent; officially 20
            "dropout": 0.0,
            "filters": (12, 24, 48),  # of "cnn"
            "hidden": 0,  # of the regressor of "cnn"; 0: none
            "patch": 16,  # of "mixer"
        }
    )

    config.encoder_weights = (
        "random"  # "resnet18:tv_in1k" (ImageNet, from the hub), or the file of torchvision's weights
    )

    # Training; rates are of the iteration, whatever its number of updates
    config.optimizer = ConfigDict(
        {
            "name": "adam",
            "clip_norm": 0.0,
            "weight_decay": 0.0,
            "b1": 0.9,
            "b2": 0.99,
            "eps": 1e-8,
            "schedule": "step",
            "learning_rate": 1e-3,
            "decay_factor": 0.8,
            "decay_steps": (200, 400, 500, 600),
        }
    )
    config.header_rate_factor = 1.0  # officially 0.2 (and 0.25)
    config.num_steps = 700
    config.log_every_steps = 20
    config.eval_every_steps = 100
    config.save_every_steps = 100

    # Evaluation
    config.eval_batch_size = 240
    config.official_metrics = False  # also report the official code's RMSE, PCC, CCC and SAGR
    config.projection = "pca"  # of the figure of features; or "tsne"
    config.keep_best = 1
    config.best_metric = "ccc"  # or "accuracy", of "category"; on the validation people
    config.best_is_largest = True

    # Where it starts and what it writes beside metrics.jsonl
    config.resume_from = ""  # work directory whose whole state is continued
    config.init_from = ""  # work directory whose parameters are taken
    config.tensorboard = True  # if tensorboardX is installed
    config.wandb_project = ""
    return select(config, variant, VARIANTS)
