"""What a config of this folder cannot be, said in one sentence before anything slow is done."""

from ml_collections import ConfigDict

from common.config import check, check_choice, check_positive
from common.data.classification import check_moments, check_per_class
from pruning import finetune, marking, memory_bank, objective, one_shot
from pruning.augment import DRAWS
from pruning.candidates import FORMS
from pruning.importance import CRITERIA
from pruning.models import ARCHITECTURES
from pruning.search import RATES


def check_config(config: ConfigDict) -> None:
    """Raise UserError for values that cannot work, alone or together."""
    for field in ("resume_from", "init_from"):
        accepted = "must be empty: phases start from one another; give config.dense instead"
        check(config, field, not getattr(config, field), accepted)
    check_choice(config, "model.architecture", ARCHITECTURES)
    for group in ("train", "prepare", "finetune"):
        check_positive(config, f"{group}.batch_size", f"{group}.learning_rate", f"{group}.decay_factor")
        shares = getattr(config, group).decay_at
        inside = list(shares) == sorted(set(shares)) and all(0 < part < 1 for part in shares)
        check(config, f"{group}.decay_at", inside, "must hold shares of the epochs between 0 and 1, in rising order")
    check_positive(config, "train.epochs", "finetune.epochs", "evaluations", "eval_batch_size")
    check(config, "prepare.epochs", config.prepare.epochs >= 0, "must be at least 0")
    check_positive(config, "prepare.images_per_class", "prepare.loss_scale")
    _check_search(config)
    check_choice(config, "finetune_teacher", finetune.TEACHERS)
    check_choice(config, "finetune.teacher_filter", finetune.FILTERS)
    check_positive(config, "finetune.temperature", "bank.teachers", "bank.batch_size")
    check_choice(config, "bank.dtype", memory_bank.DTYPES)
    check_positive(config, "slim.round_to", "slim.batches", "slim.batch_size")
    check_choice(config, "augmentation.draws", DRAWS)
    check(config, "augmentation.flip", 0 <= config.augmentation.flip <= 1, "must lie in 0..1")
    padding = 0 <= config.augmentation.crop_padding < config.image_size
    check(config, "augmentation.crop_padding", padding, f"must lie between 0 and {config.image_size - 1}")
    check_per_class(config)
    check_moments(config, config.channels)


def _check_search(config: ConfigDict) -> None:
    own = config.search
    check(config, "search.target", 0 < own.target < 1, "must lie between 0 and 1: the share of FLOPs that stays")
    check(config, "search.step", 0 < own.step <= 1, "must lie between 0 and 1")
    check_choice(config, "search.method", ("greedy", *one_shot.ALLOCATIONS))
    check_choice(config, "search.criterion", CRITERIA)
    check_choice(config, "search.marking", marking.MARKINGS)
    check_choice(config, "search.rates", RATES)
    check_choice(config, "search.normalise", ("samples", "official"))
    check_choice(config, "search.evaluation", ("automatic", *FORMS))
    check_choice(config, "search_teacher", objective.TEACHERS)
    check_positive(config, "search.images_per_class", "search.batch_size", "search.chunk")
