"""The published variants field by field: networks of the golden sizes, steps of the golden schedules, one recipe."""

import importlib

import pytest

from common import sampler
from tests.vit_small import official
from vit_small import cost, experiment
from vit_small.official_names import unused

# Variant -> name of the golden schedule, classes, image side, and the policy of AutoAugment.
PUBLISHED = {
    "cifar10": ("cifar", 10, 32, "cifar10"),
    "cifar100": ("cifar", 100, 32, "cifar10"),
    "svhn": ("svhn", 10, 32, "svhn"),
    "tiny_imagenet": ("tiny_imagenet", 200, 64, "imagenet"),
}


def published(name, variant):
    return importlib.import_module(f"vit_small.configs.{name}").get_config(variant)


@pytest.mark.parametrize("variant", ["cifar100", "tiny_imagenet"])  # the golden numbers of classes
@pytest.mark.parametrize(("spt", "lsa"), official.CASES)
@pytest.mark.parametrize("name", official.NAMES)
def test_networks_have_the_published_size(name, spt, lsa, variant):
    _, classes, side, _ = PUBLISHED[variant]
    config = published(name, variant)
    config.spt, config.lsa = bool(spt), bool(lsa)
    assert config.image_size == side
    model = experiment.make_model(config, classes)
    arrays, prefix = official.golden("models_paper_size"), f"{name}.img{side}.spt{spt}.lsa{lsa}."
    never_used = sum(array.size for n, array in unused(model).items() if n != "pos_embed")
    assert cost.parameters(model, cost.Image(side)) + never_used == arrays[prefix + "n_trainable"]
    assert cost.macs(model, cost.Image(side)) == arrays[prefix + "matmul_macs"]


@pytest.mark.parametrize("variant", PUBLISHED)
@pytest.mark.parametrize("name", official.NAMES)
def test_recipe_is_the_published_one(name, variant):
    schedule, _, _, policy = PUBLISHED[variant]
    config, optimizer = published(name, variant), published(name, variant).optimizer
    rows = official.golden("augmentation")[f"schedule.{schedule}.config"]
    num_images, epochs, warmup_epochs, batch_size, _, per_epoch = rows
    assert (config.batch_size, config.passes, config.repeats) == (batch_size, 3, 1)
    assert sampler.steps_per_epoch(int(num_images), config.batch_size, config.passes) == per_epoch
    assert config.eval_every_steps == config.save_every_steps == per_epoch
    assert config.num_steps == optimizer.total_steps == epochs * per_epoch
    assert optimizer.warmup_steps == warmup_epochs * per_epoch
    assert optimizer.learning_rate == (3e-3 if name == "vit" else 1e-3)
    assert (optimizer.initial_learning_rate, optimizer.final_learning_rate) == (1e-6, 1e-6)
    assert (optimizer.name, optimizer.weight_decay, config.decay) == ("adamw", 0.05, "all")
    assert (optimizer.b1, optimizer.b2, optimizer.eps, optimizer.clip_norm) == (0.9, 0.999, 1e-8, 0.0)
    recipe = config.augmentation
    assert (recipe.policy, recipe.flip, recipe.crop_padding, recipe.random_rotation_sign) == (policy, 0.5, 4, False)
    assert (recipe.erase, recipe.erase_fill) == (0.25, "mean")
    assert (recipe.cutmix, recipe.mixup, recipe.label_smoothing) == (0.25, 0.25, 0.1)
    assert (config.drop_path, config.drop_path_form, config.token_init) == (0.1, "official", "official")
    assert (len(config.mean), len(config.std)) == (3, 3)


@pytest.mark.parametrize("name", official.NAMES)
def test_embedded_schedule_spans_its_run(name):
    config = published(name, "")
    optimizer = config.optimizer
    assert (optimizer.total_steps, optimizer.warmup_steps) == (config.num_steps, config.num_steps // 10)
    assert config.num_steps % config.eval_every_steps == config.num_steps % config.save_every_steps == 0
    config.num_steps = 50
    assert (optimizer.total_steps, optimizer.warmup_steps) == (50, 5)
