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
# # What a teacher knows besides the answers
#
# A small student learns from labels and from *relations* inside a large teacher, measured at a few sensing points
# along both networks. **KD-SVD** (ECCV 2018) compares leading singular vectors of consecutive feature maps, **MHGD**
# (BMVC 2019) learns attention between the images of a batch, **IEP** (AAAI 2021) turns each sensing point into an
# affinity graph and learns how one becomes the next. Here you see the knowledge itself.

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
from common.augment import normalize
from common.data import classification
from distill import experiment, graph, iep, kd_svd, models, teachers
from distill.configs import iepkt

logging.set_verbosity(logging.ERROR)  # Orbax warns whenever it opens a checkpoint

# %% [markdown]
# ## Images, and a teacher for them
#
# A whole run has three phases, each with a folder of its own: the teacher learns the classes; IEP's modules (two PCAs
# and a message passing network) learn on the teacher alone; the student learns from labels and from both. The first
# two are enough to see what the third is given; its step takes a minute and more to compile.

# %%
config = iepkt.get_config()
config.update_from_flattened_dict(
    {
        "name": "notebook_iep",
        "glyphs.difficulty": "easy",
        "glyphs.num_classes": 10,
        "teacher.network": "resnet8",
        "batch_size": 32,
        "teacher_steps": 60,
        "module_steps": 30,
        "log_every_steps": 10,
        "eval_every_steps": 30,
        "save_every_steps": 30,
    }
)
dataset = classification.load_dataset(config)
test = dataset.splits["test"]
display(plots.mosaic(test.images[::30], columns=10, enlarge=2))

# %%
folder = Path("runs/notebooks/distill")
stages = experiment.phases(config)
print(", ".join(stage.name for stage in stages))
phases.train(stages[:2], config, folder)
{name: round(value, 3) for name, value in phases.results(stages, folder).items()}

# %% [markdown]
# ## IEP: the embedding procedure
#
# Images at the first two coordinates of each sensing point, framed in the colour of their class. Grey lines join
# neighbours; red (grows) and blue (shrinks) lines are the largest changes of affinity on the way to the next point.
# The deeper, the more neighbours share their class, which the second picture shows for a few images.

# %%
display(Code(inspect.getsource(iep.sphere_to_plane), language="python"))
display(Image(folder / "modules" / "figures" / "embedding_procedure.png", width=900))
display(Image(folder / "modules" / "figures" / "neighbours.png", width=600))

# %% [markdown]
# ## KD-SVD: relations of singular vectors
#
# Each feature map of the trained teacher is compressed to its first right singular vector. What the student imitates
# is the radial-basis relation between the entries of two consecutive vectors; here that of the first two points for
# four images.

# %%
display(Code(inspect.getsource(kd_svd.rbf_relation), language="python"))
teacher = phases.read_state(folder / "teacher")
recipe = experiment.make_recipe(config, experiment.make_method(config), dataset, len(dataset.splits["train"].labels))
normal = normalize(jnp.asarray(test.images[::30]), *classification.moments(config, dataset))
seen, _ = models.run(recipe.teacher, teachers.network_variables(teacher), normal)
vectors = [kd_svd.teacher_vectors(tap, 1)[0] for tap in seen.maps]
relations = np.asarray(kd_svd.rbf_relation(vectors[0], vectors[1])[:4])
print(f"from {relations.min():.3f} (black) to {relations.max():.3f} (white)")
stretched = (relations - relations.min()) / np.ptp(relations)
display(plots.mosaic(np.asarray(255 * stretched, np.uint8), columns=4, enlarge=8))

# %% [markdown]
# ## MHGD: who attends to whom
#
# Attention between the ten images of a batch, from the vectors of one point to those of the next. Its weights are
# learned on the teacher (`--config=distill/configs/mhgd.py`); fresh ones show the shape of the knowledge: one map of
# images by images for each head, and that is all that the student has to match.

# %%
display(Code(inspect.getsource(graph.attention_logits), language="python"))
front, back = (vector[..., 0] for vector in vectors[:2])
params, stats = graph.init_attention(jax.random.key(0), front.shape[1], back.shape[1])
logits, _ = graph.attention_logits(params, stats, front, back, training=True)
maps = np.asarray(255 * jax.nn.softmax(jnp.tanh(logits)), np.uint8)[..., None]
display(plots.mosaic(np.minimum(maps * 3, 255), columns=len(maps), enlarge=8))

# %% [markdown]
# Thirteen methods share one command, `python -m distill.main --config=distill/configs/NAME.py`; `distill/README.md`
# says how to add one in a file of a dozen lines.
