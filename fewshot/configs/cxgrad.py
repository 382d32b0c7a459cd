"""CxGrad: contextual gradient scaling for few-shot learning (Lee, Lee, Song, WACV 2022, arXiv 2110.10353).

Run:    python -m fewshot.main --config=fewshot/configs/cxgrad.py
Smoke:  python -m fewshot.main --config=fewshot/configs/cxgrad.py:smoke
Data:   characters of scripts never seen in training, rendered from fonts (embedded, no download).
Expect: see the table in fewshot/README.md (ours); a few minutes on 2 CPU cores.

Variants with the published settings (50 000 or 125 000 steps, one GPU; data sets to be provided by you):
    :mini_imagenet_5way_1shot  :mini_imagenet_5way_5shot  :tiered_imagenet_5way_1shot  :tiered_imagenet_5way_5shot
The paper's 5-shot accuracies, as a third-party listing gives them: 69.82 % (mini), 73.55 % (tiered).
"""

from ml_collections import ConfigDict

from common.config import select

# What the official code's experiments share; second order, T = 5, rate 0.01, Adam 1e-3, all as below.
PUBLISHED = {
    "image_size": 84,
    "channels": 3,
    "filters": 48,
    "sampler": "official",
    "model_seed": 104,
    "steps_per_epoch": 500,
    "log_every_steps": 100,
    "eval_every_steps": 500,
    "save_every_steps": 500,
    "eval_episodes": 600,
}
FIVE_SHOT = {"shots": 5, "tasks_per_step": 2}
MINI = {**PUBLISHED, "dataset": "mini_imagenet", "num_steps": 50_000}
TIERED = {**PUBLISHED, "dataset": "tiered_imagenet", "num_steps": 125_000}

SMOKE = {
    "num_steps": 4,
    "steps_per_epoch": 2,
    "log_every_steps": 1,
    "eval_every_steps": 2,
    "save_every_steps": 2,
    "eval_episodes": 8,
    "test_episodes": 8,
    "episodes_per_batch": 8,
    "filters": 8,
    "inner_steps": 2,
    "context_size": 10,
}

VARIANTS = {
    "smoke": SMOKE,
    "mini_imagenet_5way_1shot": MINI,
    "mini_imagenet_5way_5shot": {**MINI, **FIVE_SHOT},
    "tiered_imagenet_5way_1shot": TIERED,
    "tiered_imagenet_5way_5shot": {**TIERED, **FIVE_SHOT},
}


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "cxgrad"
    config.variant = ""
    config.seed = 0  # of episodes and, unless model_seed says otherwise, of the parameters
    config.model_seed = -1  # -1: as seed

    # Data and episodes
    config.dataset = "glyphs"
    config.dataset_path = ""
    config.glyphs = ConfigDict({"difficulty": "medium", "instances_per_class": 24})  # read by dataset "glyphs" only
    config.image_size = 28
    config.channels = 1
    config.normalize = "none"  # or "dataset": by the data set's own mean and deviation
    config.ways = 5
    config.shots = 1
    config.queries = 15  # per class
    config.tasks_per_step = 4
    config.images_on = "auto"  # "device", or "host": gathered there; auto: host above half of the device's memory
    config.sampler = "device"  # or "official": the published code's episodes, drawn on the host

    # Network
    config.filters = 32
    config.norm = "batch"  # or "layer"
    config.pooling = True  # False: stride-2 convolutions
    config.dtype = "float32"  # of the convolutions; "bfloat16" on accelerators

    # Inner loop
    config.method = "cxgrad"  # or "maml"
    config.inner_steps = 5
    config.inner_learning_rate = 0.01
    config.adapted = "all"  # or "head" (ANIL), "backbone" (BOIL), "all_and_norm"
    config.second_order = True
    config.first_order_steps = 0  # this many first-order steps before second order begins
    config.batch_norm = "batch"  # queries of an episode normalised together; "support_stats": inductive
    config.context = "learned"  # or "off": the context stays zero, gamma is the same for all tasks
    config.scaling = "learned"  # or "fixed_one": gamma is 1, weight normalisation alone
    config.context_size = 100
    config.context_learning_rate = 1.0
    config.learned_inner_rates = False  # MAML++: one per tensor and step
    config.per_step_norm = False  # MAML++: scale, shift and running moments per inner step
    config.multi_step_loss_epochs = 0  # MAML++: 15 in its paper

    # Outer loop
    config.optimizer = ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1e-3,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "schedule": "constant",
            "total_steps": 600,
            "final_learning_rate": 0.0,
        }
    )
    config.num_steps = 600
    config.steps_per_epoch = 50
    config.log_every_steps = 20
    config.eval_every_steps = 50
    config.save_every_steps = 50

    # Evaluation
    config.eval_episodes = 100  # of the validation split, always the same
    config.test_episodes = 600
    config.episodes_per_batch = 20
    config.keep_best = 5  # checkpoints in the ensemble
    config.ensemble = "logits"  # average of the logits or the "probabilities"
    config.best_metric = "accuracy"
    config.best_is_largest = True

    # Another data set to evaluate a finished run on, by --mode=eval; must stay empty in training
    config.eval_dataset = ""
    config.eval_dataset_path = ""
    config.eval_difficulty = ""  # of eval_dataset "glyphs"; empty: as in training

    # How it is computed; "auto" follows the measured rule of fewshot/convolution.py
    config.convolution = "auto"  # or "native", "patches", "three_forms"
    config.task_loop = "auto"  # or "vmap", "map"
    config.inner_loop = "auto"  # or "scan", "unroll"
    config.remat = False  # recompute activations: less memory, more time

    # Where it starts and what it writes beside metrics.jsonl
    config.resume_from = ""  # work directory whose whole state is continued
    config.init_from = ""  # work directory whose parameters are taken
    config.tensorboard = True  # if tensorboardX is installed
    config.wandb_project = ""
    return select(config, variant, VARIANTS)
