# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning from several tasks that need no labels
#
# **TTE** (Kim, Lee, Song, ICCV Workshops 2019, arXiv 1908.11024) pre-trains one network on several self-supervised
# tasks at once. A *metric regulariser* draws the tasks' embeddings of an image together and a *temporal task
# ensemble* averages over training, so that no task pulls the network to itself. Only the paper's abstract could be
# read: what you see is our reading.

# %% [markdown]
# In Colab the next cell installs the project, from the address that you give it; elsewhere it does nothing, since the
# project is installed already (`pip install -e '.[pretrained]'` in a checkout). Everything here runs on a CPU.

# %%
import subprocess
import sys

repository = ""  # @param {type:"string"}
if "google.colab" in sys.modules:
    if not repository:
        raise SystemExit("Give the address of the project's git repository above, then run this cell again.")
    source = f"leanvision[pretrained] @ git+{repository}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)

# %%
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from IPython.display import Code, Image, display

from common import phases, plots
from multitask import experiment, metric_regularizer, task_weighting, temporal_ensemble, views
from multitask.configs import tte
from multitask.data import load_pool

logging.set_verbosity(logging.ERROR)  # Orbax warns whenever it opens a checkpoint

# %% [markdown]
# ## Tasks made of pictures
#
# Each row: an image, its quarter turns (which one is it?), and its tiles in another order (which?). Labels are not
# needed.

# %%
config = tte.get_config("smoke")
config.update_from_flattened_dict(
    {
        "name": "notebook_tte",
        "transfers": ("clustering", "detection"),
        "glyphs.difficulty": "easy",
        "glyphs.train_per_class": 20,
        "image_size": 24,
        "encoder.width": 16,
        "num_steps": 80,
        "log_every_steps": 5,
        "eval_every_steps": 20,
        "save_every_steps": 40,
        "detection.shapes.train_images": 64,
        "detection.num_steps": 60,
    }
)
pool = load_pool(config)
images = jnp.asarray(pool.images[::40][:4])
turned = views.rotate_all(images)
orders = jnp.asarray(views.jigsaw_permutations(2, 4))
shuffled = views.jigsaw_shuffle(images, orders, 2)
display(plots.mosaic(np.concatenate([turned, shuffled[:, None]], axis=1).reshape(-1, *images.shape[1:]), 5, enlarge=3))

# %% [markdown]
# ## The two remedies
#
# The regulariser compares each task's embedding of an image with the ensemble of all tasks' (its *anchor*), against
# the anchors of the other images; the ensemble is a moving average of the weights.

# %%
display(Code(inspect.getsource(metric_regularizer.task_ensemble), language="python"))
display(Code(inspect.getsource(metric_regularizer.npair_regularizer), language="python"))
display(Code(inspect.getsource(temporal_ensemble.warmup_decay), language="python"))

# %% [markdown]
# Two tasks' embeddings of eight images, turned away from each other step by step: the regulariser grows. Its weight
# rises over the first part of training, as the numbers below say.

# %%
first = metric_regularizer.norm(jax.random.normal(jax.random.key(0), (8, 8)))
other = metric_regularizer.norm(jax.random.normal(jax.random.key(1), (8, 8)))
weights, valid = jnp.full((2,), 0.5), jnp.ones(8, bool)
shares, values = np.linspace(0, 1, 11), []
for share in shares:
    z = jnp.stack([first, metric_regularizer.norm((1 - share) * first + share * other)])
    anchors = metric_regularizer.task_ensemble(z, weights)
    values.append(float(metric_regularizer.npair_regularizer(z, anchors, valid, 0.1).mean()))
figure, axes = plots.figure(5, 3)
plots.lines(axes, shares, {"R": values}, "how different the second task's embedding is", "regulariser")
drawing = Path("runs/notebooks/regulariser.png")
plots.save(figure, drawing)
display(Image(drawing, width=500))
steps = np.arange(config.num_steps)
ramp = task_weighting.sigmoid_rampup(jnp.asarray(steps), config.num_steps * config.metric.ramp)
print("ramp:", ", ".join(f"{value:.2f}" for value in np.asarray(ramp)[::8]))

# %% [markdown]
# ## Pre-training, then target tasks

# %%
folder = Path("runs/notebooks/multitask")
stages = experiment.phases(config)
phases.train(stages, config, folder)
{name: round(value, 3) for name, value in phases.results(stages, folder).items() if "nmi" in name or "map" in name}

# %% [markdown]
# Whose gradient moves the shared encoder, how far each task's embedding is from the ensemble, and the embedding
# itself:

# %%
for name in ("gradient_shares", "distances", "embedding"):
    display(Image(folder / "pretrain" / "figures" / f"{name}.png", width=500))

# %% [markdown]
# The pre-trained encoder in two target tasks: the nearest images of some queries (green: the same class), and objects
# found in drawn scenes (white: the truth). With a budget of seconds neither is good; `multitask/README.md` has the
# real ones.

# %%
display(Image(next((folder / "clustering" / "figures").glob("*_retrieval.png")), width=600))
display(Image(folder / "detection" / "figures" / "detections.png", width=700))
