"""EKG (Lee and Song, "Ensemble Knowledge Guided Sub-network Search and Fine-tuning for Filter Pruning", ECCV 2022).

Run:    python -m pruning.main --config=pruning/configs/ekg.py
Smoke:  python -m pruning.main --config=pruning/configs/ekg.py:smoke
Data:   40 characters, 60 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see pruning/README.md (ours). Trains ResNet-20, searches down to half its FLOPs, fine-tunes the slim network.

Variants with the published settings (ResNet-56 is trained first; `--config.dense` takes one that is there):
    :cifar10  :cifar100  :cifar10_mobilenet_v2            and Fashion-MNIST with ResNet-20 (ours): :fashion_mnist
Published top-1 accuracy at 45 % of the FLOPs: CIFAR-10, ResNet-56 93.84 -> 94.09 %, MobileNet-v2 94.21 -> 94.52 %;
CIFAR-100, ResNet-56 72.62 -> 72.93 %. About 0.2 GPU hours of search and 0.7 of fine-tuning.
:imagenet_resnet18 :imagenet_resnet34 :imagenet_resnet50 take class folders (--config.dataset_path). They have the
published targets, but no published recipe of fine-tuning: theirs is ours, not a reproduction.
"""

from ml_collections import ConfigDict

from common.config import select

# Published; normalised by these constants, which are in the order blue, green, red, though the images are not.
CIFAR = {
    "dataset": "cifar10",
    "image_size": 32,
    "model.architecture": "resnet56",
    "mean": (113.9 / 255, 123.0 / 255, 125.3 / 255),
    "std": (66.7 / 255, 62.1 / 255, 63.0 / 255),
    "augmentation.flip": 0.5,
    "train.epochs": 200,
    "train.batch_size": 128,
    "train.decay_factor": 0.2,
    "prepare.images_per_class": 256,
    "prepare.batch_size": 256,
    "search.target": 0.45,
    "search.images_per_class": 32,
    "finetune.epochs": 100,
    "finetune.batch_size": 128,
    "evaluations": 100,
    "log_every_steps": 100,
    "eval_batch_size": 500,
}
# Search as published for CIFAR; fine-tuning was not released (ours: 50 epochs).
IMAGENET = {
    "dataset": "folder",  # train/ and test/ with a folder per class; all pictures are held in memory
    "image_size": 224,
    "mean": (123.675 / 255, 116.28 / 255, 103.53 / 255),
    "std": (58.395 / 255, 57.12 / 255, 57.375 / 255),
    "augmentation.flip": 0.5,
    "train.epochs": 100,
    "train.batch_size": 256,
    "prepare.images_per_class": 256,
    "prepare.batch_size": 256,
    "search.images_per_class": 32,
    "search.batch_size": 64,
    "bank.dtype": "float16",
    "finetune.temperature": 10.0,
    "finetune.epochs": 50,
    "finetune.batch_size": 128,
    "evaluations": 50,
    "log_every_steps": 100,
    "eval_batch_size": 100,
}
VARIANTS = {
    "smoke": {
        "model.architecture": "resnet8",
        "glyphs.num_classes": 4,
        "glyphs.train_per_class": 16,
        "glyphs.test_per_class": 4,
        "image_size": 16,
        "train.epochs": 1,
        "train.batch_size": 16,
        "prepare.images_per_class": 8,
        "prepare.batch_size": 16,
        "search.target": 0.8,
        "search.images_per_class": 4,
        "search.batch_size": 16,
        "bank.teachers": 2,
        "bank.batch_size": 16,
        "slim.batches": 2,
        "slim.batch_size": 16,
        "finetune.epochs": 1,
        "finetune.batch_size": 16,
        "log_every_steps": 1,
        "eval_batch_size": 16,
        "latency_batch_sizes": (1,),
        "latency_runs": 3,
        "landscape_iterations": 3,
        "landscape_images": 16,
    },
    "cifar10": CIFAR,
    "cifar100": {
        **CIFAR,
        "dataset": "cifar100",
        "mean": (112 / 255, 124 / 255, 129 / 255),
        "std": (70 / 255, 65 / 255, 68 / 255),
    },
    "cifar10_mobilenet_v2": {**CIFAR, "model.architecture": "mobilenet_v2"},
    "imagenet_resnet18": {**IMAGENET, "model.architecture": "imagenet_resnet18", "search.target": 0.499},
    "imagenet_resnet34": {**IMAGENET, "model.architecture": "imagenet_resnet34", "search.target": 0.549},
    "imagenet_resnet50": {**IMAGENET, "model.architecture": "imagenet_resnet50", "search.target": 0.45},
    "fashion_mnist": {
        "dataset": "fashion_mnist",
        "image_size": 32,
        "channels": 1,
        "augmentation.flip": 0.5,
        "train.epochs": 10,
        "train.batch_size": 128,
        "search.images_per_class": 32,
        "finetune.epochs": 5,
        "finetune.batch_size": 128,
        "eval_batch_size": 500,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "ekg"
    config.variant = ""
    config.seed = 0

    # Ablations: who teaches
    config.search_teacher = "ensemble"  # of all interim networks; "single": the whole network; "none"
    config.finetune_teacher = "ensemble"  # the memory bank; "single": its best teacher; "none": plain cross entropy

    # Data
    config.dataset = "glyphs"
    config.dataset_path = ""
    config.glyphs = ConfigDict(  # read by dataset "glyphs" only
        {"difficulty": "hard", "num_classes": 40, "train_per_class": 60, "test_per_class": 30}
    )
    config.per_class = ConfigDict({"train": 0, "test": 0})  # at most so many images of each class; 0: all
    config.image_size = 24
    config.channels = 3
    config.mean = ()  # of normalisation, per channel in [0, 1]; (): measured on the training images
    config.std = ()
    config.augmentation = ConfigDict(
        {
            "flip": 0.0,  # characters are no mirror images
            "crop_padding": 4,  # reflected
            "brightness": 0.0,  # +- on the scale of 0..255; officially 0.2, which is nothing
            "contrast": 0.2,  # this and saturation: in the views of training with a bank
            "saturation": 0.2,
            "draws": "image",  # crop and colours for each image; "batch" as in the official code
        }
    )

    # The whole network
    config.model = ConfigDict({"architecture": "resnet20"})
    config.dense = ""  # train it here; or the work directory of a run, or an .npz file of official weights
    config.train = ConfigDict(
        {
            "epochs": 40,
            "batch_size": 64,
            "learning_rate": 0.1,
            "weight_decay": 5e-4,
            "decay_at": (0.3, 0.6, 0.8),  # of the epochs
            "decay_factor": 0.2,
        }
    )

    # Preparation: plain cross entropy on the first images of each class
    config.prepare = ConfigDict(
        {
            "epochs": 1,  # 0: none
            "images_per_class": 60,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "weight_decay": 5e-4,
            "decay_at": (),
            "decay_factor": 1.0,
            "loss_scale": 2.0,  # official: the loss of 256 images is divided by 128; 1.0 is the clean value
        }
    )

    # Search
    config.search = ConfigDict(
        {
            "target": 0.5,  # share of the FLOPs that stays
            "method": "greedy",  # EKG; at once: "uniform", one share for all gates; "global", one threshold
            "criterion": "taylor",  # of filters; or "l1", "fpgm", "bn_gamma", "random"
            "step": 0.2,  # r, share of a gate's channels that go at once, divided by the gate's uses
            "marking": "scores",  # which gates are tried; "release": the official slip; "all": every gate
            "rates": "exact",  # whole channels; "official": rounded rates
            "normalise": "samples",  # of the loss; "official": a short last batch counts as a full one
            "images_per_class": 5,  # D_val: the last training images of each class
            "batch_size": 256,  # also what BatchNorm takes its statistics of
            "evaluation": "automatic",  # of candidates: "prefix", "batched", "one_by_one"; the same numbers
            "chunk": 8,  # candidates at a time, if "batched"
        }
    )

    # Memory bank
    config.bank = ConfigDict({"teachers": 5, "batch_size": 256, "dtype": "float32"})  # or "float16"

    # Slim network
    config.slim = ConfigDict(
        {"round_to": 1, "batches": 10, "batch_size": 128}  # widths; batches that re-estimate the moving statistics
    )

    # Fine-tuning
    config.finetune = ConfigDict(
        {
            "epochs": 10,
            "batch_size": 64,  # images; two views of each
            "learning_rate": 0.01,
            "weight_decay": 5e-4,
            "decay_at": (0.3, 0.6, 0.8),
            "decay_factor": 0.2,
            "temperature": 4.0,  # 10 for 1000 classes
            "teacher_filter": "divergence",  # of the bank; "loss" as in the paper; "all"
        }
    )

    # What every phase that trains uses; 0 and () are set by the phase from its own fields above
    config.num_steps = 0
    config.batch_size = 0
    config.eval_every_steps = 0
    config.save_every_steps = 0
    config.optimizer = ConfigDict(
        {
            "name": "sgd",
            "clip_norm": 0.0,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.0,
            "schedule": "step",
            "learning_rate": 0.0,
            "decay_steps": (),
            "decay_factor": 0.0,
        }
    )
    config.evaluations = 5  # on the test images, in each phase that trains
    config.log_every_steps = 20
    config.eval_batch_size = 200
    config.keep_best = 0  # the last epoch counts
    config.best_metric = "accuracy"
    config.best_is_largest = True

    # Report
    config.latency_batch_sizes = (1, 64)
    config.latency_runs = 20
    config.landscape_images = 320  # of the training set, for the condition number of the Hessian; 0: leave it out
    config.landscape_iterations = 20  # of Lanczos

    # Where it starts and what it writes beside metrics.jsonl
    config.resume_from = ""  # these two must stay empty: phases start from one another; see `dense`
    config.init_from = ""
    config.tensorboard = True  # if tensorboardX is installed
    config.wandb_project = ""
    return select(config, variant, VARIANTS)


def at_once(variant: str, name: str, method: str, criterion: str) -> ConfigDict:
    """A baseline: filters go all at once by another criterion, nobody teaches."""
    config = get_config(variant)
    config.name = name
    config.search.method = method
    config.search.criterion = criterion
    config.search_teacher = "none"
    config.finetune_teacher = "none"
    return config
