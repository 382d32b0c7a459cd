"""SPT and LSA in ViT (Lee, Lee, Song, "Vision Transformer for Small-Size Datasets", arXiv 2112.13492).

Run:    python -m vit_small.main --config=vit_small/configs/vit.py --config.spt=True --config.lsa=True
Smoke:  python -m vit_small.main --config=vit_small/configs/vit.py:smoke
Data:   72 characters in 12 font styles, 10 coloured 32-pixel images of each to learn from (embedded, no download).
Expect: see vit_small/README.md (ours); plain ViT has about 50 %. 1200 steps of about 0.3 s of CPU time.

Variants with the published settings, one recipe for all (100 epochs of 3 passes; one GPU; ViT of 2.7 million numbers):
    :cifar10  :cifar100  :svhn  :tiny_imagenet            and Fashion-MNIST with the same recipe (ours): :fashion_mnist
Official top-1 accuracy of ViT, and with SPT and LSA: CIFAR-10 93.58, 94.53; CIFAR-100 73.81, 76.92; SVHN 97.82, 97.79;
Tiny-ImageNet 57.07, 61.07 %.
"""

from ml_collections import ConfigDict

from common.config import select

# The published recipe. Steps: epochs of three passes, each floor(3 N / 128) steps; 10 of 100 epochs of warm-up.
PUBLISHED = {
    "batch_size": 128,
    "eval_batch_size": 500,
    "drop_path": 0.1,
    "augmentation.flip": 0.5,
    "augmentation.erase": 0.25,
    "augmentation.cutmix": 0.25,
    "augmentation.mixup": 0.25,
    "log_every_steps": 100,
}
CIFAR = {"num_steps": 117_100, "eval_every_steps": 1171, "save_every_steps": 1171, "augmentation.policy": "cifar10"}
DATASETS = {
    "cifar10": {
        **PUBLISHED,
        **CIFAR,
        "dataset": "cifar10",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    },
    "cifar100": {
        **PUBLISHED,
        **CIFAR,
        "dataset": "cifar100",
        "mean": (0.5070, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
    },
    "svhn": {
        **PUBLISHED,
        "dataset": "svhn_cropped",
        "mean": (0.4377, 0.4438, 0.4728),
        "std": (0.1980, 0.2010, 0.1970),
        "augmentation.policy": "svhn",
        "num_steps": 171_600,
        "eval_every_steps": 1716,
        "save_every_steps": 1716,
    },
    "tiny_imagenet": {
        **PUBLISHED,
        "dataset": "tiny_imagenet",
        "image_size": 64,
        "mean": (0.4802, 0.4481, 0.3975),
        "std": (0.2770, 0.2691, 0.2821),
        "augmentation.policy": "imagenet",
        "num_steps": 234_300,
        "eval_every_steps": 2343,
        "save_every_steps": 2343,
    },
    "fashion_mnist": {
        **PUBLISHED,
        "dataset": "fashion_mnist",
        "augmentation.policy": "cifar10",
        "num_steps": 14_060,  # 10 epochs of three passes
        "eval_every_steps": 1406,
        "save_every_steps": 1406,
    },
}
SMOKE = {
    "glyphs.num_classes": 8,
    "glyphs.train_per_class": 8,
    "glyphs.test_per_class": 2,
    "image_size": 16,
    "batch_size": 8,
    "eval_batch_size": 16,
    "num_steps": 4,
    "log_every_steps": 1,
    "eval_every_steps": 2,
    "save_every_steps": 2,
}
SIZE = {"model.width": 192, "model.depth": 9, "model.heads": 12, "model.hidden": 384, "optimizer.learning_rate": 3e-3}


def variants(
    size: dict[str, object], smoke: dict[str, object], large: dict[str, object]
) -> dict[str, dict[str, object]]:
    """The variants of an architecture: its paper size, its smallest size, and what changes at 64 pixels."""
    published = {name: {**fields, **size} for name, fields in DATASETS.items()}
    published["tiny_imagenet"] |= large
    return {"smoke": {**SMOKE, **smoke}, **published}


VARIANTS = variants(
    SIZE, {"model.width": 16, "model.depth": 2, "model.heads": 2, "model.hidden": 32}, {"model.patch": 8}
)


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "vit"
    config.variant = ""
    config.seed = 0

    # The two ideas
    config.spt = False  # shifted patch tokenisation
    config.lsa = False  # locality self-attention
    config.lsa_parts = "both"  # or "temperature", "mask"
    config.temperature_per = "head"  # or "layer"
    config.spt_pool = True  # SPT for pooling layers too (PiT, Swin)
    config.directions = "diagonal4"  # or "cardinal4", "all8"
    config.shift_ratio = 0.5  # of the patch
    config.spt_form = "reference"  # or "fused": one convolution, the same numbers (even patches, "diagonal4")

    # Data
    config.dataset = "glyphs"
    config.dataset_path = ""
    config.glyphs = ConfigDict(  # read by dataset "glyphs" only
        {"difficulty": "medium", "num_classes": 72, "train_per_class": 10, "test_per_class": 30}
    )
    config.per_class = ConfigDict({"train": 0, "test": 0})  # at most so many images of each class; 0: all
    config.image_size = 32
    config.channels = 3
    config.mean = ()  # of normalisation, per channel in [0, 1]; (): measured on the training images
    config.std = ()
    config.selection = "test"  # the best epoch by the test images (official); or "held_out": by training images
    config.held_out_share = 0.1  # of the training images, with "held_out", where there is no validation split

    # Network
    config.model = ConfigDict(
        {"architecture": "vit", "patch": 4, "width": 96, "depth": 6, "heads": 6, "head_dim": 16, "hidden": 192}
    )
    config.token_init = "official"  # class token and positions N(0, 1); "small": std 0.02
    config.drop_path = 0.0  # stochastic depth; 0.1 in the paper's recipe
    config.drop_path_form = "official"  # the same for all layers (ViT, PiT, CaiT) or linear (T2T, Swin); or say which
    config.layers = "scan"  # or "unroll": the same numbers, slower to compile
    config.dtype = "float32"  # of the matrix products; "bfloat16" on accelerators

    # Augmentation; every part with probability 0 (or "none") is left out
    config.augmentation = ConfigDict(
        {
            "flip": 0.0,  # characters are no mirror images; 0.5 in the paper's recipe
            "crop_padding": 4,
            "policy": "none",  # AutoAugment: "cifar10", "svhn", "imagenet"
            "random_rotation_sign": False,  # official: one way only
            "erase": 0.0,  # 0.25 in the paper's recipe
            "erase_fill": "mean",  # official: the mean in [0, 1], painted after normalisation; "zero", "noise"
            "cutmix": 0.25,
            "mixup": 0.25,
            "label_smoothing": 0.1,
        }
    )

    # Training; an epoch is `passes` shuffled passes
    config.batch_size = 64
    config.passes = 3
    config.repeats = 1  # of each image in a row: repetition in the batch, with fewer images a pass
    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "clip_norm": 0.0,
            "weight_decay": 0.05,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "schedule": "warmup_cosine",
            "learning_rate": 2e-3,
            "initial_learning_rate": 1e-6,
            "final_learning_rate": 1e-6,
        }
    )
    config.num_steps = 1200  # at about 0.3 s of CPU time a step
    config.optimizer.total_steps = config.get_ref("num_steps")
    config.optimizer.warmup_steps = config.get_ref("num_steps") // 10
    config.decay = "all"  # parameters that decay (official); "matrices": kernels only
    config.log_every_steps = 50
    config.eval_every_steps = 300
    config.save_every_steps = 300

    # Evaluation
    config.eval_batch_size = 240
    config.eval_analysed_images = 16  # by --mode=analyse
    config.keep_best = 1
    config.best_metric = "accuracy"
    config.best_is_largest = True

    # Where it starts and what it writes beside metrics.jsonl
    config.resume_from = ""  # work directory whose whole state is continued
    config.init_from = ""  # work directory whose parameters are taken
    config.tensorboard = True  # if tensorboardX is installed
    config.wandb_project = ""
    return select(config, variant, VARIANTS)
