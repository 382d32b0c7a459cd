"""What a config of this folder cannot be, said in one sentence before anything slow is done."""

from ml_collections import ConfigDict

from common import sampler
from common.config import check, check_choice, check_positive
from common.data.classification import check_fields
from vit_small.models import ARCHITECTURES
from vit_small.spt import DIRECTIONS


def check_config(config: ConfigDict, num_classes: int, num_images: int) -> None:
    """Raise UserError for values that cannot work, alone, together, or with these data."""
    check_positive(config, "num_steps", "batch_size", "eval_batch_size", "passes", "repeats")
    check(config, "keep_best", config.keep_best == 1, "must be 1, for the best epoch that is reported")
    check(config, "drop_path", 0 <= config.drop_path < 1, "must lie in 0..1, below 1")
    check_fields(config)
    check_choice(config, "selection", ("test", "held_out"))
    check_choice(config, "directions", DIRECTIONS)
    check_choice(config, "spt_form", ("reference", "fused"))
    check_choice(config, "lsa_parts", ("both", "temperature", "mask"))
    check_choice(config, "temperature_per", ("head", "layer"))
    check_choice(config, "drop_path_form", ("official", "constant", "linear"))
    check_choice(config, "token_init", ("official", "small"))
    check_choice(config, "decay", ("all", "matrices"))
    check_choice(config, "layers", ("scan", "unroll"))
    check_choice(config, "dtype", ("float32", "bfloat16"))
    check_choice(config, "best_metric", ("accuracy", "loss"))
    enough = sampler.steps_per_epoch(num_images, config.batch_size, config.passes) >= 1
    check(config, "batch_size", enough, f"must be at most {config.passes * num_images}, an epoch of these data")
    check(config, "dataset", num_classes >= 2, f"must have at least 2 classes, but has {num_classes}")
    check_choice(config, "model.architecture", ARCHITECTURES)
    _CHECKS[config.model.architecture](config)


def _patches(config: ConfigDict) -> int:
    """Side of the patch grid."""
    patch, side = config.model.patch, config.image_size
    check(config, "model.patch", patch >= 1 and side % patch == 0, f"must divide config.image_size, {side}")
    if config.spt:
        shift = int(config.shift_ratio * patch)
        check(config, "shift_ratio", 1 <= shift <= patch, f"must move a patch of {patch} by 1 to {patch} whole pixels")
    return side // patch


def _two_tokens(config: ConfigDict, field: str, tokens: int) -> None:
    masked = config.lsa and config.lsa_parts != "temperature"
    check(config, field, tokens >= 2 or not masked, "must leave at least 2 tokens: with LSA none looks at itself")


def _check_plain(config: ConfigDict) -> None:
    check_positive(config, *(f"model.{name}" for name in ("width", "depth", "heads", "head_dim", "hidden")))
    patches = _patches(config) ** 2
    _two_tokens(config, "model.patch", patches + (config.model.architecture == "vit"))


def _check_t2t(config: ConfigDict) -> None:
    names = ("soft_splits", "token_width", "width", "depth", "heads", "hidden")
    check_positive(config, *(f"model.{name}" for name in names))
    width, heads = config.model.width, config.model.heads
    check(config, "model.heads", width % heads == 0, f"must divide config.model.width, {width}")
    smallest = 2**config.model.soft_splits
    check(config, "image_size", config.image_size >= smallest, f"must be at least {smallest} for the soft splits")
    check(config, "image_size", config.image_size % smallest == 0, f"must be a multiple of {smallest} (soft splits)")


def _check_stages(config: ConfigDict) -> int:
    """Side of the first grid."""
    depths, heads = config.model.depths, config.model.heads
    check(config, "model.heads", len(heads) == len(depths), f"must have {len(depths)} numbers, as many as model.depths")
    for field in ("depths", "heads"):
        check(config, f"model.{field}", bool(depths) and min(config.model[field]) >= 1, "must be numbers above 0")
    check_positive(config, "model.width", "model.mlp_ratio")
    grid, halvings = _patches(config), len(depths) - 1
    even = f"must give a patch grid that can be halved {halvings} times, but {grid} x {grid} cannot"
    check(config, "model.patch", grid % 2**halvings == 0, even)
    return grid


def _check_pit(config: ConfigDict) -> None:
    check_positive(config, "model.head_dim")
    _check_stages(config)


def _check_swin(config: ConfigDict) -> None:
    grid, window = _check_stages(config), config.model.window
    fits = 1 <= window <= grid
    check(config, "model.window", fits, f"must be at least 1 and at most the patch grid, {grid}")
    for stage, heads in enumerate(config.model.heads):
        width, side = config.model.width * 2**stage, grid // 2**stage
        check(config, "model.heads", width % heads == 0, f"must divide the stages' widths, {width} in stage {stage}")
        tiles = side <= window or side % window == 0
        check(config, "model.window", tiles, f"must divide the grid of stage {stage}, {side} x {side}, or exceed it")
        _two_tokens(config, "model.window", min(window, side) ** 2)


_CHECKS = {"vit": _check_plain, "cait": _check_plain, "t2t": _check_t2t, "pit": _check_pit, "swin": _check_swin}
