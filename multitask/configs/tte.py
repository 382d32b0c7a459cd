"""Multi-task unsupervised pre-training with a metric regulariser and a temporal task ensemble (Kim, Lee and Song,
"Metric-based Regularization and Temporal Ensemble for Multi-task Learning using Heterogeneous Unsupervised Tasks",
ICCV Workshops 2019, arXiv 1908.11024). Only the abstract could be read: every field below is our completion.

Run:    python -m multitask.main --config=multitask/configs/tte.py
Smoke:  python -m multitask.main --config=multitask/configs/tte.py:smoke
Data:   embedded: characters of many fonts (pre-training, classification, clustering) and drawn shapes (detection).
Expect: no number of the paper is known. Ours: multitask/README.md. Within 15 minutes on 2 CPU cores.

Variants on real data (one GPU, prepared with tensorflow-datasets): :cifar10 :cifar100 :stl10
Baselines, with the same budget: --config.tasks="()" (scratch), --config.tasks="('rotation',)" (single task),
--config.metric.beta_max=0.0 --config.tte.mode=none (naive sum), --config.tasks="('supervised',)" (labels).
"""

from ml_collections import ConfigDict

from common.config import select

_REAL = {
    "batch_size": 128,
    "eval_batch_size": 500,
    "encoder.name": "resnet18",
    "decoder.channels": (256, 128, 64, 32, 32),
    "projection.dim": 128,
    "tte.alpha": 0.999,
    "clustering_task.num_clusters": 100,
    "augment.flip": True,
    "augment.padding": 4,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.05,
    "optimizer.schedule": "warmup_cosine",
    "optimizer.weight_decay": 5e-4,
    "log_every_steps": 100,
}
_CIFAR = {"num_steps": 78_000, "optimizer.warmup_steps": 1950, "eval_every_steps": 3900, "save_every_steps": 3900}
# --- transfers: settings of real data
_CIFAR_LABELS = {
    "classification.flip": True,
    "classification.padding": 4,
    "classification.batch_size": 128,
    "classification.probe.solver": "sgd",
    "classification.finetune.fractions": (1.0, 0.1, 0.01),
    "classification.finetune.learning_rates": (0.01, 0.03, 0.1),
    "classification.finetune.num_steps": 39_000,  # 100 epochs
    "classification.log_every_steps": 100,
    "classification.eval_every_steps": 3900,
    "classification.save_every_steps": 3900,
}
_BIRDS = {
    "clustering.dataset": "caltech_birds2011",
    "clustering.stored_size": 256,
    "clustering.image_size": 224,
    "clustering.min_area": 0.35,
    "clustering.flip": True,
    "clustering.embedding_dim": 512,
    "clustering.learning_rate": 1e-4,
    "clustering.num_steps": 20_000,
    "clustering.kmeans.n_init": 10,
    "clustering.eval_every_steps": 2000,
    "clustering.save_every_steps": 2000,
}
_VOC = {
    "detection.dataset": "voc2007",
    "detection.image_size": 384,
    "detection.neck_channels": 256,
    "detection.neck_blocks": 0,
    "detection.max_detections": 100,
    "detection.min_scale": 0.6,
    "detection.max_scale": 1.4,
    "detection.colour": 0.4,
    "detection.batch_size": 32,
    "detection.num_steps": 10_900,  # 70 epochs of 5011 images
    "detection.optimizer.learning_rate": 1.25e-4,
    "detection.optimizer.schedule": "step",
    "detection.optimizer.decay_steps": (7000, 9400),
    "detection.eval_every_steps": 1000,
    "detection.save_every_steps": 1000,
}
# --- end of transfers: settings of real data
VARIANTS = {
    "smoke": {
        "glyphs.num_classes": 8,
        "glyphs.train_per_class": 8,
        "glyphs.test_per_class": 4,
        "image_size": 16,
        "encoder.width": 8,
        "projection.dim": 8,
        "clustering_task.num_clusters": 6,
        "batch_size": 16,
        "eval_batch_size": 32,
        "num_steps": 8,
        "log_every_steps": 1,
        "eval_every_steps": 4,
        "save_every_steps": 4,
        # --- transfers: smoke
        "classification.batch_size": 16,
        "classification.padding": 1,
        "classification.finetune.fractions": (1.0, 0.1),
        "classification.finetune.learning_rates": (0.1, 0.3),
        "classification.finetune.num_steps": 2,
        "classification.probe.l2": (1e-3, 1e-2),
        "classification.log_every_steps": 1,
        "classification.eval_every_steps": 2,
        "classification.save_every_steps": 2,
        "clustering.glyphs.instances_per_class": 20,
        "clustering.glyphs.max_classes": 8,
        "clustering.stored_size": 16,
        "clustering.image_size": 16,
        "clustering.embedding_dim": 8,
        "clustering.batch_size": 8,
        "clustering.num_steps": 4,
        "clustering.kmeans.n_init": 1,
        "clustering.kmeans.seeds": 2,
        "clustering.log_every_steps": 1,
        "clustering.eval_every_steps": 2,
        "clustering.save_every_steps": 2,
        "detection.shapes.train_images": 16,
        "detection.shapes.test_images": 8,
        "detection.image_size": 32,
        "detection.neck_channels": 8,
        "detection.head_channels": 8,
        "detection.batch_size": 8,
        "detection.num_steps": 4,
        "detection.log_every_steps": 1,
        "detection.eval_every_steps": 2,
        "detection.save_every_steps": 2,
        # --- end of transfers: smoke
    },
    "cifar10": {
        **_REAL,
        **_CIFAR,
        "dataset": "cifar10",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        # --- transfers: cifar10
        **_CIFAR_LABELS,
        **_BIRDS,
        **_VOC,
        # --- end of transfers: cifar10
    },
    "cifar100": {
        **_REAL,
        **_CIFAR,
        "dataset": "cifar100",
        "mean": (0.5070, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
        # --- transfers: cifar100
        **_CIFAR_LABELS,
        **_BIRDS,
        **_VOC,
        # --- end of transfers: cifar100
    },
    "stl10": {
        **_REAL,
        "dataset": "stl10",
        "unlabelled_split": "unlabelled",
        "image_size": 96,
        "mean": (0.4467, 0.4398, 0.4066),
        "std": (0.2603, 0.2566, 0.2713),
        "encoder.stem": "medium",
        "augment.padding": 12,
        "jigsaw.crop": 0,
        "num_steps": 164_000,  # 200 epochs
        "optimizer.warmup_steps": 4100,
        "eval_every_steps": 8200,
        "save_every_steps": 8200,
        # --- transfers: stl10
        "classification.flip": True,
        "classification.padding": 12,
        "classification.batch_size": 128,
        "classification.probe.folds": 10,
        "classification.finetune.fractions": (1.0, 0.1, 0.01),
        "classification.finetune.learning_rates": (0.01, 0.03, 0.1),
        "classification.finetune.num_steps": 3900,  # 100 epochs of the 5000 labelled images
        "classification.eval_every_steps": 1950,
        "classification.save_every_steps": 1950,
        **_BIRDS,
        **_VOC,
        # --- end of transfers: stl10
    },
}


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "tte"
    config.variant = ""
    config.seed = 0
    config.transfers = ("classification", "clustering", "detection")  # target tasks after pre-training; () for none

    # Pretext tasks: "autoencoder", "denoising", "inpainting", "colorization", "rotation", "jigsaw", "clustering",
    # "adversarial", and "supervised" (the labels, an upper bound). (): no pre-training, the targets start from scratch
    config.tasks = ("autoencoder", "rotation", "clustering")
    config.task_weights = ()  # of each task in the ensemble, sum 1; (): all the same
    config.denoising = ConfigDict({"std": 0.25})  # of the noise, after normalisation
    config.inpainting = ConfigDict({"context_weight": 0.0})  # of the error outside the hole
    config.rotation = ConfigDict({"num_views": 4})  # all four turns of each image, or 1: a random one
    config.jigsaw = ConfigDict(
        {
            "grid": 3,  # tiles a side, 2 or 3
            "num_perms": 30,  # permutations told apart; 24 are all of a 2 x 2 grid
            "crop": 30,  # side of the middle that is cut into tiles, padded back afterwards; 0: the whole image
        }
    )
    config.clustering_task = ConfigDict(
        {
            "num_clusters": 64,
            "pca_dim": 256,  # at most; never more than the features
            "refresh_epochs": 1,  # passes between two clusterings of all images
            "balance": "weights",  # or "none": images of large clusters count as much as others
            "feature_source": "online",  # or "teacher"
        }
    )
    config.adversarial = ConfigDict(
        {"code_dim": 64, "hidden": 256, "learning_rate": 2e-4, "b1": 0.5}  # of the code, the critic and its Adam
    )

    # Regulariser: distance of each task's embedding from the ensemble of all tasks
    config.metric = ConfigDict(
        {
            "kind": "npair",  # or "triplet", "center", "pairwise"
            "beta_max": 0.1,  # weight after the ramp; 0: off
            "ramp": 0.1,  # share of all steps until it is reached
            "temperature": 0.1,  # npair
            "margin": 0.2,  # triplet
            "mining": "all",  # triplet: or "nonzero", "hardest"
            "radius": 0.0,  # center: squared distance that costs nothing
            "view": "task",  # embeddings of each task's own view, or of the "clean" image (one more forward pass)
        }
    )

    # Temporal task ensemble
    config.tte = ConfigDict(
        {
            "mode": "param_ema",  # or "feature_ema", "task_snapshot", "none"
            "alpha": 0.99,  # of the moving average (feature_ema: 0.6, task_snapshot: 0.5 are usual)
            "bias_correction": "warmup",  # param_ema: running mean until alpha; or "debias"
            "batch_stats": "ema",  # param_ema: or "copy"
            "order": "parallel",  # task_snapshot: or "sequential"
            "inner_steps": 50,  # task_snapshot: of each task between two averages
        }
    )

    # How the tasks' losses and gradients are added up
    config.weighting = ConfigDict(
        {
            "kind": "uniform",  # or "dwa", "uncertainty"
            "lambdas": (),  # uniform: of each task; (): 1 for all
            "temperature": 2.0,  # dwa
        }
    )
    config.gradient = ConfigDict({"kind": "sum"})  # or "pcgrad"

    # Data
    config.dataset = "glyphs"
    config.dataset_path = ""
    config.unlabelled_split = ""  # of a tensorflow-datasets set, added to the training images ("unlabelled" of stl10)
    config.glyphs = ConfigDict(  # read by dataset "glyphs" only
        {"difficulty": "medium", "num_classes": 64, "train_per_class": 60, "test_per_class": 20}
    )
    config.per_class = ConfigDict({"train": 0, "test": 0})  # at most so many images of each class; 0: all
    config.image_size = 32
    config.channels = 3
    config.mean = ()  # of normalisation, per channel in [0, 1]; (): measured on the training images
    config.std = ()
    config.augment = ConfigDict({"flip": False, "padding": 2})  # pixels of reflected border of random crops

    # Networks
    config.encoder = ConfigDict(
        {
            "name": "conv4",  # or "resnet18", "resnet34", "resnet50"
            "stem": "small",  # of a ResNet: "small" up to 48 pixels, "medium" up to 112, "imagenet"
            "width": 32,  # of conv4
        }
    )
    config.decoder = ConfigDict({"channels": (32, 16, 16, 16, 16)})  # of each doubling from the last map to pixels
    config.projection = ConfigDict({"dim": 32, "hidden": True})  # hidden False: one linear map without bias
    config.bn_mode = "joint"  # batch statistics over all views together; "split": each view by itself

    # Training
    config.batch_size = 32
    config.optimizer = ConfigDict(  # weight decay is on kernels only
        {
            "name": "adam",
            "clip_norm": 0.0,
            "weight_decay": 0.0,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "momentum": 0.9,  # sgd
            "nesterov": True,
            "schedule": "constant",
            "learning_rate": 1e-3,
            "initial_learning_rate": 0.0,
            "final_learning_rate": 0.0,
            "warmup_steps": 0,
        }
    )
    config.num_steps = 600
    config.optimizer.total_steps = config.get_ref("num_steps")
    config.log_every_steps = 50
    config.eval_every_steps = 150  # gradients of the tasks on the shared encoder: their shares and cosines
    config.save_every_steps = 150
    config.eval_batch_size = 240

    # Transfers, each with everything of its phase
    config.transfer = ConfigDict({"source": "teacher"})  # weights of the temporal ensemble, or "online"
    # --- transfers: classification
    config.classification = ConfigDict(  # of the images of config.dataset, with their labels
        {
            "probe": {
                "solver": "lbfgs",  # to the optimum; "sgd" for large sets: as long as a fine-tuning, augmented
                "layer": "pooled",  # or "layer1" ... "layer4", averaged over a grid
                "most_features": 9000,  # of such a grid
                "l2": (1e-5, 1e-4, 1e-3, 1e-2),  # the best on held-out training images
                "iterations": 200,
                "learning_rate": 0.1,  # sgd: for a batch of 256
                "folds": 0,  # class-balanced parts of the training images that are probed too
                "fold_size": 1000,
            },
            "knn": {"k": 200, "temperature": 0.07},
            "finetune": {
                "fractions": (1.0, 0.1),  # of the labels; (): no fine-tuning
                "learning_rates": (0.3,),  # several: the best on held-out training images, for each fraction
                "num_steps": 300,  # of each fine-tuning
                "weight_decay": 5e-4,  # of kernels
                "momentum": 0.9,  # Nesterov's
            },
            "held_out_share": 0.1,  # of the training images, to choose l2 and rate
            "flip": False,
            "padding": 2,  # pixels of reflected border of random crops
            "batch_size": 64,
            "log_every_steps": 50,
            "eval_every_steps": 300,
            "save_every_steps": 300,
        }
    )
    # --- end of transfers: classification
    # --- transfers: clustering
    config.clustering = ConfigDict(
        {
            "dataset": "glyphs",  # any few-shot data set, or "caltech_birds2011", "cars196" (classes split in halves)
            "dataset_path": "",
            # Read by dataset "glyphs" only: other scripts than those that are tested on
            "glyphs": {"difficulty": "medium", "instances_per_class": 20, "max_classes": 40},
            "stored_size": 32,  # pixels of the images in memory, of which ...
            "image_size": 32,  # ... so many are seen: the middle, or in training a random part
            "min_area": 1.0,  # of that part (relative to the whole image), at least
            "flip": False,
            "loss": "npair",  # or "triplet" (semi-hard)
            "l2": 0.02,  # npair
            "margin": 0.2,  # triplet
            "embedding_dim": 64,
            "num_steps": 200,  # 0: only the frozen features
            "batch_size": 64,
            "images_per_class": 2,  # of a batch; npair takes 2
            "learning_rate": 1e-3,  # of Adam
            "new_layer_factor": 10.0,  # times as much for the layer that makes the embedding
            "recall_ks": (1, 2, 4, 8),
            "metric": "cosine",  # or "euclidean"
            "kmeans": {"iterations": 100, "n_init": 5, "seeds": 5, "empty": "keep"},  # or "farthest"
            "log_every_steps": 50,
            "eval_every_steps": 100,
            "save_every_steps": 100,
        }
    )
    # --- end of transfers: clustering
    # --- transfers: detection
    config.detection = ConfigDict(
        {
            "dataset": "shapes",  # or "voc2007", "voc2007_2012" (tested on the test images of 2007)
            "dataset_path": "",
            "data_seed": 0,  # of the drawn images; the same for all seeds of training
            "shapes": {"train_images": 64, "test_images": 128, "max_objects": 4},  # read by dataset "shapes" only
            "image_size": 64,
            "learn_difficult": False,  # objects marked as difficult are never counted in tests
            "head": "centernet",  # or "ssd"
            "stride": 4,  # input pixels per cell of the (finest) map of the head
            "neck": "upsample",  # from the encoder's map to that one: nearest neighbour and 3x3; or "transpose" (4x4)
            "neck_channels": 64,
            "neck_blocks": 1,  # residual blocks after that
            "head_channels": 64,
            "max_detections": 50,  # of an image; no threshold on scores beside that
            "gaussian_radius": "corrected",  # or "legacy", the known error of the released CornerNet and CenterNet
            "size_weight": 0.1,
            "offset_weight": 1.0,
            "ssd": {
                "scales": (0.16, 0.27, 0.45),  # of each map's anchors relative to the image, and one more
                "ratios": (2.0,),
                "nms_threshold": 0.45,
                "candidates": 100,  # of each class, before overlapping ones are suppressed
            },
            "flip": True,
            "min_scale": 1.0,  # images are drawn between so many times as large ...
            "max_scale": 1.0,  # ... and so many, at a random place
            "colour": 0.0,  # relative change of brightness and contrast
            "batch_size": 16,
            "num_steps": 150,
            "optimizer": {
                "name": "adam",
                "clip_norm": 0.0,
                "weight_decay": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "schedule": "cosine",  # or "step"
                "learning_rate": 2e-3,
                "final_learning_rate": 0.0,
                "decay_steps": (),  # "step": times decay_factor at each
                "decay_factor": 0.1,
            },
            "voc": {
                "iou_threshold": 0.5,
                "box_offset": 0,  # 1: heights and widths of inclusive pixels, as in the VOC kit
                "strict": False,  # True: a match must overlap more than the threshold, not at least so much
                "legacy_thresholds": False,  # True: recalls of the 11-point rule compared as floats
            },
            "log_every_steps": 50,
            "eval_every_steps": 150,
            "save_every_steps": 150,
        }
    )
    config.detection.optimizer.total_steps = config.detection.get_ref("num_steps")
    # --- end of transfers: detection

    # Where it starts and what it writes beside metrics.jsonl
    config.keep_best = 0
    config.best_metric = ""
    config.best_is_largest = True
    config.resume_from = ""  # work directory whose whole state is continued
    config.init_from = ""  # work directory whose parameters are taken
    config.tensorboard = True  # if tensorboardX is installed
    config.wandb_project = ""
    return select(config, variant, VARIANTS)
