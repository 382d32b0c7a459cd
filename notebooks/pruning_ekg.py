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
# # EKG: how wide must each layer be?
#
# **EKG** (Lee and Song, ECCV 2022, arXiv 2203.02651) takes a trained network and a budget of FLOPs. It removes
# filters in small steps, one layer at a time, always where the loss on a few images suffers least, and lets the
# *ensemble of all interim networks* judge as well. Some of those networks then teach the slim one.

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
import csv
import inspect
import json
from pathlib import Path

from absl import logging
from IPython.display import Code, Image, display

from common import phases, plots
from pruning import experiment, importance, objective, setup
from pruning.configs import ekg

logging.set_verbosity(logging.ERROR)  # Orbax warns whenever it opens a checkpoint

# %% [markdown]
# ## Data, network, budget
#
# Ten characters, ResNet-8 and three quarters of its FLOPs, so that all phases together take a minute. A *gate* is a
# group of channels that can only be removed together.

# %%
config = ekg.get_config("smoke")
config.update_from_flattened_dict(
    {
        "name": "notebook_ekg",
        "glyphs.difficulty": "easy",
        "glyphs.num_classes": 10,
        "glyphs.train_per_class": 30,
        "train.epochs": 12,
        "finetune.epochs": 4,
        "log_every_steps": 20,
        "search.target": 0.6,
    }
)
setting = setup.load(config)
display(plots.mosaic(setting.dataset.splits["train"].images[::30], columns=10, enlarge=2))
{gate.name: gate.channels for gate in setting.graph.gates}

# %% [markdown]
# ## What decides
#
# Which filters of a layer go first: those whose output the score depends on least (a Taylor term). Which layer is
# narrowed: the one whose candidate has the lowest score, cross entropy plus knowledge of the ensemble.

# %%
display(Code(inspect.getsource(importance.taylor), language="python"))
display(Code(inspect.getsource(objective.score_sum), language="python"))
display(Code(inspect.getsource(objective.update_ensemble), language="python"))

# %% [markdown]
# ## Train, search, remember, fine-tune

# %%
folder = Path("runs/notebooks/pruning")
stages = experiment.phases(config)
print(", ".join(stage.name for stage in stages))
phases.train(stages, config, folder)
results = phases.results(stages, folder)
{name: round(value, 3) for name, value in results.items() if "accuracy" in name or "kept" in name}

# %% [markdown]
# Accuracy on the search's images against FLOPs, and the share of each gate's channels that is left:

# %%
display(Image(folder / "search" / "figures" / "search.png", width=500))
display(Image(folder / "search" / "figures" / "widths.png", width=600))
with (folder / "search" / "history.csv").open() as stream:
    for row in list(csv.DictReader(stream))[:6]:
        print(row)

# %% [markdown]
# ## The slim network
#
# It is a smaller network, not one with masks: the folder `slim` holds it, and `python -m pruning.predict` uses it.

# %%
display(Image(folder / "finetune" / "figures" / "accuracy.png", width=500))
description = json.loads((folder / "slim" / "slim.json").read_text())
description["cost"]

# %% [markdown]
# `python -m pruning.main --config=pruning/configs/ekg.py` prunes a ResNet-20 to half its FLOPs, `:cifar10` behind it
# is the published setting; L1, FPGM, BN gamma and random filters have configs beside it. See `pruning/README.md`.
