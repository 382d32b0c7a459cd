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
# # ELIM: facial expression whoever shows it
#
# A regressor of valence and arousal learns the people it is trained on along with their expressions. **ELIM** (Kim
# and Song, NeurIPS 2022, arXiv 2209.12172) groups a batch by person, matches everybody to one reference person by
# optimal transport, and removes from everybody's features what that transport costs: the *identity shift*.

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

import numpy as np
from absl import logging
from IPython.display import Code, Image, display

from common import phases, plots
from fer import elim, experiment, matching
from fer.configs import elim as configs

logging.set_verbosity(logging.ERROR)  # Orbax warns whenever it opens a checkpoint

# %% [markdown]
# ## Synthetic people
#
# Cartoon faces: each row is one person, from sad to happy. Mouths, eyes and brows carry a personal style, so that the
# same picture means other feelings in other people. They say nothing about real faces.

# %%
config = configs.get_config()
config.update_from_flattened_dict(
    {
        "name": "notebook_elim",
        "faces.train_identities": 24,
        "faces.validation_identities": 8,
        "faces.test_identities": 8,
        "faces.frames": 20,
        "model.filters": (16, 32),
        "batch_identities": 8,
        "batch_frames": 4,
        "identities": 4,
        "num_steps": 120,
        "optimizer.decay_steps": (80,),
        "log_every_steps": 10,
        "eval_every_steps": 60,
        "save_every_steps": 60,
    }
)
parts = experiment.load(config)
test = parts.held_out["test"]
frames = [np.flatnonzero(test.identity == person) for person in np.unique(test.identity)[:4]]
frames = [places[np.argsort(test.valence_arousal[places, 0])][::2][:8] for places in frames]
display(plots.mosaic(test.images[np.concatenate(frames)], columns=8, enlarge=2))

# %% [markdown]
# ## The idea, in two files
#
# Entropic optimal transport by the official code's Sinkhorn recursion, and the shifted features that the same header
# sees in a second update:

# %%
display(Code(inspect.getsource(matching.sinkhorn_knopp), language="python"))
display(Code(inspect.getsource(elim.shifted_features), language="python"))

# %% [markdown]
# ## Training

# %%
folder = Path("runs/notebooks/fer")
stages = phases.plan(config, experiment.build, None)
phases.train(stages, config, folder)
{name: round(value, 3) for name, value in phases.results(stages, folder).items() if name.endswith(("ccc", "gap"))}

# %% [markdown]
# ## The transport plan between two people
#
# Rows are frames of the reference, columns those of the target, both from sad to happy. Mass goes where features are
# alike: a bright diagonal means that the features of one person's smile resemble those of the other's.

# %%
display(Image(folder / "figures" / "plan.png", width=500))

# %% [markdown]
# Features of people never trained on, by person and by valence, before and after training; predictions against
# labels.

# %%
display(Image(folder / "figures" / "features.png", width=600))
display(Image(folder / "figures" / "scatter.png", width=600))

# %% [markdown]
# `python -m fer.main --config=fer/configs/elim.py` is the embedded default, `plain.py` and `penalty.py` its
# baselines. Your own face crops need a CSV with `path, identity, valence, arousal`: see `fer/README.md`.
