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
# # Vision transformers on small data: SPT and LSA
#
# A vision transformer has no notion of neighbourhood until it has seen many images. Lee, Lee and Song ("Vision
# Transformer for Small-Size Datasets", arXiv 2112.13492) add two modules: **shifted patch tokenisation** (SPT) shows
# each token its surroundings, **locality self-attention** (LSA) learns the temperature of the softmax and forbids a
# token to attend to itself.

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
from common.data import classification
from vit_small import analysis, experiment, lsa, spt
from vit_small.configs import vit

logging.set_verbosity(logging.ERROR)  # Orbax warns whenever it opens a checkpoint

# %% [markdown]
# ## Shifted patches
#
# The image and four copies, moved diagonally by half a patch, go side by side into the channels; then patches are cut
# as always. Each row: an image and its four shifted views.

# %%
config = vit.get_config()
config.update_from_flattened_dict(
    {
        "name": "notebook_sl_vit",
        "spt": True,
        "lsa": True,
        "glyphs.difficulty": "easy",
        "glyphs.num_classes": 10,
        "model.width": 48,
        "model.depth": 4,
        "model.heads": 3,
        "model.hidden": 96,
        "augmentation.cutmix": 0.0,
        "augmentation.mixup": 0.0,
        "batch_size": 32,
        "num_steps": 150,
        "log_every_steps": 10,
        "eval_every_steps": 75,
        "save_every_steps": 75,
        "eval_analysed_images": 8,
    }
)
dataset = classification.load_dataset(config)
images = dataset.splits["test"].images[::60][:3]
views = spt.shifted_views(jnp.asarray(images, jnp.float32), spt.shift_of(config.model.patch))
views = np.stack(np.split(np.asarray(views, np.uint8), 5, axis=-1), axis=1)
display(plots.mosaic(views.reshape(-1, *images.shape[1:]), columns=5, enlarge=2))
display(Code(inspect.getsource(spt.shifted_views), language="python"))

# %% [markdown]
# ## Locality self-attention
#
# The same random queries and keys: first as in any transformer (scale 1/sqrt(d)), then with a learned scale s four
# times as large (a lower temperature), then with the diagonal masked as well. Rows are queries, brighter is more
# attention.

# %%
display(Code(inspect.getsource(lsa.attend), language="python"))
q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 1, 16, 16))
forms = {"ordinary": (0.25, False), "lower temperature": (1.0, False), "and masked": (1.0, True)}
attention = [lsa.attend(q, k, v, scale, mask_diagonal=masked)[1][0, 0] for scale, masked in forms.values()]
pictures = [np.asarray(255 * weights / weights.max(), np.uint8)[..., None] for weights in attention]
print(", ".join(forms))
display(plots.mosaic(np.stack(pictures), columns=3, enlarge=8))

# %% [markdown]
# ## Training a small SL-ViT on ten characters

# %%
folder = Path("runs/notebooks/vit_small")
stages = phases.plan(config, experiment.build, None)
phases.train(stages, config, folder)
{name: round(value, 3) for name, value in phases.results(stages, folder).items() if name.startswith("test")}

# %% [markdown]
# ## What the class token looks at
#
# In the last layer, and rolled out over all layers; then the entropy of attention and the probability with which a
# token attends to itself, layer by layer (0: the diagonal is masked), and the learned temperatures beside sqrt(d).

# %%
analysis.analyse(config, folder)
for name in ("maps", "attention", "temperatures"):
    display(Image(folder / "figures" / f"{name}.png", width=600))

# %% [markdown]
# `python -m vit_small.main --config=vit_small/configs/vit.py --config.spt=True --config.lsa=True` is the embedded
# default, `:cifar100` behind the config the published setting; T2T-ViT, CaiT, PiT and Swin have configs beside it.
# See `vit_small/README.md`.
