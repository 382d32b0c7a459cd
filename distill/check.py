"""What a config of this folder cannot be, said in one sentence before anything slow is done."""

import inspect
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from common import sampler
from common.config import check, check_choice, check_positive
from common.data.classification import check_fields
from common.errors import UserError, did_you_mean
from distill import svd
from distill.train import MERGE_RULES

STAGES = ("joint", "two_stage")


def check_config(config: ConfigDict, num_classes: int, num_images: int) -> None:
    """Raise UserError for values that cannot work, alone, together, or with these data."""
    check_positive(config, "teacher_steps", "module_steps", "initialisation_steps", "num_steps")
    check_positive(config, "batch_size", "eval_batch_size", "figure_images", "module_learning_rate")
    check(config, "keep_best", config.keep_best == 1, "must be 1, for the best epoch that is reported")
    check(config, "weight_decay", config.weight_decay >= 0, "must not be negative")
    check(config, "sample_share", 0 < config.sample_share <= 1, "must lie in 0..1, above 0")
    shares = tuple(config.decay_shares)
    rising = all(0 < share < 1 for share in shares) and list(shares) == sorted(set(shares))
    check(config, "decay_shares", rising, "must be rising numbers between 0 and 1")
    check_fields(config)
    check_choice(config, "selection", ("test", "held_out"))
    check_choice(config, "stages", STAGES)
    check_choice(config, "decay", ("all", "kernels"))
    check_choice(config, "merge_rule", MERGE_RULES)
    for field in ("student", "teacher"):
        check_positive(config, f"{field}.width")
        check(config, f"{field}.dropout", 0 <= getattr(config, field).dropout < 1, "must lie in 0..1, below 1")
    enough = sampler.steps_per_epoch(num_images, config.batch_size, 1) >= 1
    check(config, "batch_size", enough, f"must be at most {num_images}, the images that are trained on")
    check(config, "dataset", num_classes >= 2, f"must have at least 2 classes, but has {num_classes}")
    _check_cache(config)


def _check_cache(config: ConfigDict) -> None:
    spec = config.augmentation
    augmented = spec.flip or spec.rotation or spec.crop_padding
    accepted = "must be False where images are augmented (config.augmentation): the teacher sees them anew each time"
    check(config, "cache_teacher", not (config.cache_teacher and augmented), accepted)
    alone = config.cache_teacher and config.method in ("none", "dml")
    check(
        config, "cache_teacher", not alone, f"must be False with method {config.method!r}: there is no frozen teacher"
    )


def check_options(config: ConfigDict, make: Callable[..., Any]) -> None:
    """Raise UserError unless config.options has exactly the options of the method."""
    known, given = set(inspect.signature(make).parameters), set(config.options)
    for name in sorted(given - known):
        near = did_you_mean(name, known)
        listed = ", ".join(sorted(known)) or "none"
        raise UserError(f"config.options.{name} is no option of method {config.method!r}{near}; it has {listed}.")
    for name in sorted(known - given):
        raise UserError(
            f"config.options.{name} is missing: method {config.method!r} needs it; start from the method's own config."
        )


def check_decomposition(given: ConfigDict) -> None:
    """Raise UserError for a way of decomposing maps that does not exist; `given`: a method's arguments as "options"."""
    check_choice(given, "options.svd_gradient", svd.GRADIENTS)
    check_choice(given, "options.svd_backend", svd.BACKENDS)
    check_choice(given, "options.teacher_svd", svd.LEADING)
