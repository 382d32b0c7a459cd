"""What a config of this folder cannot be, said in one sentence before anything slow is done."""

from ml_collections import ConfigDict

from common.config import check, check_choice, check_positive
from common.data.classification import check_moments
from common.models.alexnet import SMALLEST_SIDE
from fer import grouping, matching, models, sampling, train

TASKS = ("valence_arousal", "category")
IDENTITIES = ("person", "age")


def check_config(config: ConfigDict) -> None:
    """Raise UserError for values that cannot work, alone or together."""
    check_choice(config, "task", TASKS)
    check_choice(config, "identity", IDENTITIES)
    check_choice(config, "method", train.METHODS)
    check_choice(config, "sampler", sampling.SAMPLERS)
    check_choice(config, "header_statistics", ("all", "supervised_only"))
    check_choice(config, "projection", ("pca", "tsne"))
    _check_matching(config)
    _check_model(config)
    check_positive(config, "num_steps", "eval_batch_size")
    check(config, "keep_best", config.keep_best == 1, "must be 1, for the best step that is reported")
    check_choice(config, "best_metric", ("accuracy",) if config.task == "category" else ("ccc", "rmse"))
    largest = config.best_metric != "rmse"
    check(config, "best_is_largest", config.best_is_largest == largest, f"must be {largest} for {config.best_metric}")
    check(config, "num_classes", config.num_classes in (7, 8), "must be 7 or 8")
    check(config, "header_rate_factor", config.header_rate_factor >= 0, "must not be negative")
    check(config, "penalty", config.penalty >= 0, "must not be negative")
    check_moments(config, 3)
    check(config, "std", not config.std or min(config.std) > 0, "must be numbers above 0")


def _check_matching(config: ConfigDict) -> None:
    check_choice(config, "alignment", grouping.ALIGNMENTS)
    check_choice(config, "matching.weighting", matching.WEIGHTINGS)
    check_choice(config, "matching.marginal_mass", matching.MASSES)
    check_choice(config, "matching.solver", matching.SOLVERS)
    check_choice(config, "matching.shift", matching.SHIFTS)
    check_positive(config, "top_k", "matching.sharpness", "matching.iterations", "matching.epsilon")
    check(config, "identities", config.identities >= 2, "must be at least 2: one reference and one target")
    check(config, "updates", config.updates in (1, 2), "must be 1 or 2")
    elim = config.method == "elim"
    check(
        config, "updates", not elim or config.updates == 2, 'must be 2 for method "elim", which matches in the second'
    )
    check(config, "matching_weight", config.matching_weight > 0, "must be above 0")
    check(config, "encoder_clip", config.encoder_clip >= 0, "must not be negative (0: not clipped)")
    check(config, "warm_up_start", config.warm_up_start >= 0, "must not be negative")
    full = config.warm_up_full >= config.warm_up_start
    check(config, "warm_up_full", full, f"must be at least warm_up_start, {config.warm_up_start}")
    gumbel = config.alignment == "gumbel" and config.task == "category"
    check(config, "alignment", not gumbel, 'must be "none" or "max_filling" for categories, which have no intensity')


def _check_model(config: ConfigDict) -> None:
    check_choice(config, "model.backbone", models.BACKBONES)
    check_positive(config, "model.latent", "model.header_factor", "image_size")
    check(config, "model.dropout", 0 <= config.model.dropout < 1, "must lie in 0..1, below 1")
    crop, padding = config.augmentation.crop, config.augmentation.crop_padding
    check(config, "augmentation.crop", 0 <= crop <= config.image_size, f"must lie in 0..{config.image_size}")
    check(config, "augmentation.crop_padding", padding >= 0, "must not be negative")
    check(config, "augmentation.crop_padding", not (crop and padding), "must be 0 where augmentation.crop is set")
    check(config, "augmentation.flip", 0 <= config.augmentation.flip <= 1, "must lie in 0..1")
    named = config.model.backbone in ("alexnet", "resnet18")
    check(config, "encoder_weights", named or config.encoder_weights == "random", 'must be "random" for this backbone')
    side, backbone = crop or config.image_size, config.model.backbone
    field = "augmentation.crop" if crop else "image_size"
    if backbone == "cnn":
        filters = config.model.filters
        check(config, "model.filters", bool(filters) and min(filters) >= 1, "must be numbers above 0")
        least = 2 ** len(filters)
        check(config, field, side >= least, f"must be at least {least} for {len(filters)} halvings")
        check(config, "model.hidden", config.model.hidden >= 0, "must not be negative (0: none)")
    elif backbone == "alexnet":
        check(config, field, side >= SMALLEST_SIDE, f"must be at least {SMALLEST_SIDE} for AlexNet")
    elif backbone == "mixer":
        patch = config.model.patch
        check(config, "model.patch", patch >= 1 and side % patch == 0, f"must divide the side of the pictures, {side}")


def check_batch(config: ConfigDict, frames: int, people: int) -> None:
    """Raise UserError where these training data cannot fill a batch."""
    if config.sampler == "identity_balanced":
        check_positive(config, "batch_identities", "batch_frames")
        least = 2 if config.method == "elim" else 1
        fits = least <= config.batch_identities <= people
        check(config, "batch_identities", fits, f"must lie in {least}..{people}, the identities to train on")
    else:
        check_positive(config, "batch_size")
        fits = 2 <= config.batch_size <= frames
        check(config, "batch_size", fits, f"must lie in 2..{frames}, the frames to train on")
