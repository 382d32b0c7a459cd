"""Weights to and from the official PyTorch code's names.

    python -m vit_small.convert --workdir=RUN --out=official.safetensors [--which=last|best]
    python -m vit_small.convert --config=CONFIG --weights=official.pth --classes=100 --workdir=NEW_RUN

The first writes a run's parameters for the official modules (`load_state_dict`), the second makes a work directory from
official weights (.pth or .safetensors) that training starts from with --config.init_from=NEW_RUN.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from common import config as configs
from common import pretrained, tool, workdir
from common.checkpoint import Checkpoints
from common.errors import UserError
from vit_small import experiment, official_names, predict, train
from vit_small.check import check_config

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not when this file is imported, since other programs have flags of the same names."""
    config_flags.DEFINE_config_file("config", lock_config=True, help_string="Config of official weights.")
    flags.DEFINE_string("weights", "", "Official weights to read.")
    flags.DEFINE_string("key", "", "Dictionary inside the weights file, such as model_state_dict.")
    flags.DEFINE_integer("classes", 0, "Classes of the official weights.")
    flags.DEFINE_string("workdir", "", "A finished run to read, or a new folder to write.")
    flags.DEFINE_string("out", "", "File to write: .safetensors.")
    flags.DEFINE_enum("which", "last", ["last", "best"], "The last epoch or the best.")


def main(argv: Sequence[str]) -> int:
    """Do what the flags say; the exit code: 2, and one sentence, for what the user can mend."""
    del argv
    logging.set_verbosity(logging.ERROR)  # Orbax tells every step of a save
    try:
        if not FLAGS.workdir:
            raise UserError("--workdir is missing: a finished run to read, or a new folder to write.")
        folder = Path(FLAGS.workdir)
        if FLAGS.weights:
            if FLAGS.classes < 2:
                raise UserError("--classes is missing: the number of classes of the official weights, at least 2.")
            read(FLAGS.config, Path(FLAGS.weights), FLAGS.key, FLAGS.classes, folder)
            print(f"{FLAGS.weights} read into {folder}; train on with --config.init_from={folder}.")
        elif FLAGS.out:
            count = write(folder, tool.new_file(Path(FLAGS.out)), FLAGS.which)
            print(f"{count} tensors written to {FLAGS.out}.")
        else:
            raise UserError("--out is missing: the file to write (or --weights, to read official weights).")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def write(folder: Path, out: Path, which: str = "last") -> int:
    """Write a run's parameters under official names; the number of tensors."""
    config, description, params = predict.open_run(folder, which)
    model = experiment.make_model(config, len(description["class_names"]))
    positions = 1 + (-(-config.image_size // 2 ** config.model.get("soft_splits", 0))) ** 2
    tensors = official_names.to_official(model, params, positions)
    pretrained.save_safetensors(out, tensors, {"model": config.model.architecture})
    return len(tensors)


def read(config: ConfigDict, weights: Path, key: str, classes: int, folder: Path) -> None:
    """Make a work directory whose only checkpoint, at step 0, holds official weights."""
    check_config(config, classes, config.batch_size)  # the number of images does not matter here
    model = experiment.make_model(config, classes)
    recipe = train.Recipe(model, experiment.optim.make_optimizer(config.optimizer), _no_augmentation(classes, config))
    image = (config.image_size, config.image_size, config.channels)
    state = jax.eval_shape(lambda key: train.init(recipe, image, None, key), jax.random.key(0))
    tensors = pretrained.read_weights(weights, key or None)
    params = official_names.from_official(model, tensors, state.params, str(weights))
    workdir.open_for_training(folder, config)
    state = state.replace(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(jnp.asarray, params),
        opt_state=recipe.optimizer.init(jax.tree.map(jnp.asarray, params)),
    )
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        checkpoints.save(0, state, {"metrics_bytes": 0, "sums": {}, "evaluation_due": False})
        checkpoints.wait()
    finally:
        checkpoints.close()


def _no_augmentation(classes: int, config: ConfigDict) -> experiment.Augmentation:
    return experiment.Augmentation(classes, (0.5,) * config.channels, (0.5,) * config.channels)


def parse(argv: list[str]) -> list[str]:
    """A config is needed for reading official weights only: a run has its own."""
    reading = any(argument.startswith("--weights") for argument in argv)
    return configs.parse_flags(argv) if reading else flags.FLAGS(argv)


if __name__ == "__main__":
    define_flags()
    app.run(lambda argv: sys.exit(main(argv)), flags_parser=parse)
