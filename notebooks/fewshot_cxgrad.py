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
# # Few-shot learning: what an inner loop does, and what CxGrad changes in it
#
# An **episode** is a tiny classification task: a few labelled *support* images of five characters, and *query* images
# to classify. **MAML** learns weights from which a few gradient steps on the support images solve such a task.
# **CxGrad** (Lee, Lee, Song, WACV 2022, arXiv 2110.10353) rescales the gradients of that inner loop, layer by layer,
# by factors that it makes from a context vector of the task.

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
from fewshot import cxgrad, data, episodes, experiment
from fewshot.configs import cxgrad as configs

logging.set_verbosity(logging.ERROR)  # Orbax warns whenever it opens a checkpoint

# %% [markdown]
# ## Episodes
#
# The embedded data set renders characters of many scripts from fonts. Test scripts (Armenian, Georgian, Hebrew) are
# never seen in training. Below, each row is one class of an episode: its support image first, then query images. The
# config is the ordinary one with a smaller network and a budget of a minute; every field is explained in its file.

# %%
config = configs.get_config()
config.update_from_flattened_dict(
    {
        "name": "notebook_cxgrad",
        "glyphs.difficulty": "easy",
        "filters": 16,
        "inner_steps": 2,
        "queries": 5,
        "tasks_per_step": 1,
        "num_steps": 150,
        "log_every_steps": 10,
        "eval_every_steps": 75,
        "save_every_steps": 75,
        "eval_episodes": 50,
        "test_episodes": 50,
        "episodes_per_batch": 50,
        "keep_best": 1,
        "eval_analysis_episodes": 20,
    }
)
loaded = data.load(config)
test = loaded.dataset.splits["test"]
offsets = np.searchsorted(test.labels, np.arange(len(test.class_names)))
sizes = np.bincount(test.labels)
shape = {"ways": config.ways, "shots": config.shots, "queries": config.queries}
(episode,) = episodes.sample_episodes(
    jax.random.key(1), jnp.asarray(offsets), jnp.asarray(sizes), num_tasks=1, **shape, max_class_size=int(sizes.max())
)
display(plots.mosaic(test.images[np.asarray(episode).ravel()], columns=config.shots + config.queries, enlarge=2))

# %% [markdown]
# ## The idea, in its own file
#
# The whole paper is `fewshot/cxgrad.py`. A kernel is set to the norm γ before each inner step; behind batch norm that
# leaves the network's output as it is and makes its gradient 1/γ times as long.

# %%
display(Code(inspect.getsource(cxgrad.scale_weights), language="python"))
display(Code(inspect.getsource(cxgrad.inner_step), language="python"))

# %% [markdown]
# ## Meta-training
#
# `phases.train` is what the command line calls. Running the cell again finds the finished run and does nothing; a run
# that was stopped is resumed.

# %%
folder = Path("runs/notebooks/fewshot")
stages = phases.plan(config, experiment.build, None)
phases.train(stages, config, folder)
{name: round(value, 3) for name, value in phases.results(stages, folder).items()}

# %% [markdown]
# Chance is 0.2. The scale factors of the four layers over training, and the norm of the inner-loop gradient of each
# tensor on test episodes: the paper starts from the observation that, in MAML, the head's is far the largest.

# %%
display(Image(folder / "figures" / "scale_factors.png", width=500))
display(Image(folder / "figures" / "gradient_norms.png", width=500))

# %% [markdown]
# ## What adaptation does
#
# Accuracy on the query images of test episodes after each inner step, when everything, the head alone or the backbone
# alone adapts (further than the run was trained for, to the right), and how similar each block's features stay to
# those before.

# %%
experiment.analyse(config, folder)
for name in ("accuracy", "similarity_unbiased"):
    display(Image(folder / "analysis" / f"{name}.png", width=500))

# %% [markdown]
# This budget shows how things work, not how well. `python -m fewshot.main --config=fewshot/configs/cxgrad.py` is the
# embedded default, `:mini_imagenet_5way_1shot` behind it the published setting; MAML, ANIL, BOIL, MAML++ and TAPL
# have configs beside it. `fewshot/README.md` goes on from here.
