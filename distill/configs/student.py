"""The student alone: what distillation is compared with. Every field of the folder's configs is explained here.

Run:    python -m distill.main --config=distill/configs/student.py
Smoke:  python -m distill.main --config=distill/configs/student.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).

Variants, all configs of this folder have them: :cifar100 (the toolbox's recipe: ResNet8 student, ResNet32 teacher, 100
epochs; one GPU), :cifar100_wrn (WRN-16-4, WRN-40-4; IEP), :cifar100_vgg, :cifar100_mobilenet, :cifar100_resnext (the
recipe of KD-SVD's code, 200 epochs), :tiny_imagenet, :imagenet32, and (ours) :fashion_mnist. Toolbox, CIFAR-100, last
epoch, mean of 5 runs: student 71.76 %, teacher 78.96 %.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from common.config import select

# Statistics in the official code, in R, G, B; the code has them in reverse.
CIFAR_MEAN = (129.3773 / 255, 124.1058 / 255, 112.4776 / 255)
CIFAR_STD = (68.2094 / 255, 65.4312 / 255, 70.4587 / 255)
IMAGENET32_MEAN = (122.680 / 255, 116.655 / 255, 104.003 / 255)
IMAGENET32_STD = (66.404 / 255, 64.569 / 255, 68.393 / 255)


def epochs(steps: int, student: int, teacher: int, modules: int, initialisation: int) -> dict[str, Any]:
    """Lengths of the phases in steps, from lengths in epochs of `steps` steps."""
    return {
        "num_steps": student * steps,
        "teacher_steps": teacher * steps,
        "module_steps": modules * steps,
        "initialisation_steps": initialisation * steps,
        "eval_every_steps": steps,
        "save_every_steps": steps,
        "log_every_steps": 100,
    }


TOOLBOX: dict[str, Any] = {
    **{"batch_size": 128, "eval_batch_size": 200, "weight_decay": 5e-4, "optimizer.learning_rate": 0.1},
    **{"decay_shares": (0.3, 0.6, 0.8), "optimizer.decay_factor": 0.1, "module_learning_rate": 0.1},
    **{"augmentation.flip": 0.5, "augmentation.crop_padding": 4, "student.width": 1.0, "teacher.width": 1.0},
    **{"teacher.network": "resnet32", "image_size": 32},
}
CIFAR: dict[str, Any] = {"dataset": "cifar100", "mean": CIFAR_MEAN, "std": CIFAR_STD, **TOOLBOX}
ECCV: dict[str, Any] = {
    **CIFAR,
    **epochs(390, 200, 200, 40, 40),
    **{"weight_decay": 1e-4, "decay": "kernels", "merge_rule": "eccv", "optimizer.learning_rate": 0.01},
    **{"decay_shares": (0.5, 0.75), "augmentation.rotation": 15.0, "augmentation.crop_mode": "constant"},
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar100": {**CIFAR, **epochs(390, 100, 100, 40, 40)},
    "cifar100_wrn": {
        **{**CIFAR, **epochs(390, 100, 100, 20, 40), "optimizer.decay_factor": 0.2},
        **{"student.network": "wrn16_4", "student.dropout": 0.3, "teacher.network": "wrn40_4"},
    },
    "cifar100_vgg": {**ECCV, "student.network": "vgg", "teacher.network": "vgg_teacher"},
    "cifar100_mobilenet": {**ECCV, "student.network": "mobilenet", "teacher.network": "mobilenet_teacher"},
    "cifar100_resnext": {**ECCV, "student.network": "resnext", "teacher.network": "resnext_teacher"},
    "tiny_imagenet": {
        **TOOLBOX,
        **epochs(781, 100, 100, 40, 40),
        **{"dataset": "tiny_imagenet", "image_size": 64},
        **{"student.network": "resnet12_large", "teacher.network": "resnet52_large"},
    },
    "imagenet32": {
        **TOOLBOX,
        **epochs(10009, 100, 100, 40, 40),
        **{"dataset": "imagenet32", "mean": IMAGENET32_MEAN, "std": IMAGENET32_STD},
    },
    "fashion_mnist": {**TOOLBOX, **epochs(468, 10, 10, 2, 2), "dataset": "fashion_mnist"},
}
SMOKE: dict[str, Any] = {
    **{"glyphs.num_classes": 8, "glyphs.train_per_class": 8, "glyphs.test_per_class": 2, "image_size": 16},
    **{"student.width": 0.25, "teacher.width": 0.25, "teacher.network": "resnet8"},
    **{"batch_size": 8, "eval_batch_size": 16, "num_steps": 4, "teacher_steps": 4, "module_steps": 4},
    **{"initialisation_steps": 4, "log_every_steps": 1, "eval_every_steps": 2, "save_every_steps": 2},
    **{"figure_images": 16},
}


def variants(**changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants of all configs, with what a method changes in some of them."""
    every = {"smoke": SMOKE, **PUBLISHED}
    return {name: {**fields, **changes.get(name, {})} for name, fields in every.items()}


VARIANTS = variants()


def get_config(variant: str = "") -> ConfigDict:
    return select(base(), variant, VARIANTS)


def base() -> ConfigDict:
    """The embedded default, without a teacher."""
    config = ConfigDict()
    config.name = "student"
    config.variant = ""
    config.seed = 0
    config.phase = "student"  # the last phase of the run; "teacher": stop after it (configs/teacher.py)

    # The method: a file of baselines/ or methods/, and the arguments of its `make`
    config.method = "none"
    config.options = ConfigDict()
    config.stages = "joint"  # the method's loss beside cross entropy; "two_stage": before it, in a phase of its own
    config.merge_rule = "toolbox"  # of methods that merge gradients; or "eccv", "tf2_port"

    # Networks: names of distill/models, a factor on all widths, dropout of wide ResNets, sensing points ((): its own)
    config.student = ConfigDict({"network": "resnet8", "width": 0.125, "dropout": 0.0, "taps": ()})
    config.teacher = ConfigDict({"network": "resnet20", "width": 0.125, "dropout": 0.0, "taps": ()})
    config.teacher_checkpoint = ""  # work directory of a trained teacher; "": train one first
    config.cache_teacher = False  # compute the teacher once for all images; needs an augmentation that does nothing

    # Data
    config.dataset = "glyphs"
    config.dataset_path = ""
    config.glyphs = ConfigDict(  # read by dataset "glyphs" only
        {"difficulty": "hard", "num_classes": 72, "train_per_class": 30, "test_per_class": 30}
    )
    config.per_class = ConfigDict({"train": 0, "test": 0})  # at most so many images of each class; 0: all
    config.image_size = 24
    config.channels = 3
    config.mean = ()  # of normalisation, per channel in [0, 1]; (): measured on the training images
    config.std = ()
    config.sample_share = 1.0  # of each class's training images, for all phases but the teacher's
    config.selection = "test"  # the best epoch by the test images (official); or "held_out": by training images
    config.held_out_share = 0.1  # of the training images, with "held_out", where there is no validation split

    # Augmentation: 0 leaves a part out
    config.augmentation = ConfigDict(
        {
            "flip": 0.0,  # characters are no mirror images; 0.5 in the papers
            "rotation": 0.0,  # largest angle in degrees; 15 in KD-SVD's code
            "crop_padding": 4,
            "crop_mode": "reflect",  # or "constant": zeros
            "batch_crop": False,  # published toolbox: one place for the whole batch
        }
    )

    # Training: steps of each phase
    config.teacher_steps = 2000
    config.module_steps = 300
    config.initialisation_steps = 400
    config.num_steps = 2000  # of the student
    config.batch_size = 64
    config.optimizer = ConfigDict(
        {
            **{"name": "sgd", "momentum": 0.9, "nesterov": True, "clip_norm": 0.0},
            **{"schedule": "step", "learning_rate": 0.05, "decay_steps": (), "decay_factor": 0.1},
        }
    )
    config.decay_shares = (0.6, 0.85)  # of a phase, after which the rate decays; fills optimizer.decay_steps
    config.module_learning_rate = 0.05  # constant, of the phase of modules
    config.weight_decay = 5e-4  # gradient weight_decay * w, as in 1/2 weight_decay w^2
    config.decay = "all"  # parameters that decay; or "kernels"
    config.log_every_steps = 50
    config.eval_every_steps = 200
    config.save_every_steps = 200

    # Evaluation
    config.eval_batch_size = 240
    config.figure_images = 200  # of figures of trained modules
    config.keep_best = 1
    config.best_metric = "accuracy"
    config.best_is_largest = True

    # Where the student starts and what a run writes beside metrics.jsonl
    config.resume_from = ""  # work directory whose whole state is continued
    config.init_from = ""  # work directory whose parameters are taken
    config.tensorboard = True  # if tensorboardX is installed
    config.wandb_project = ""
    return config
