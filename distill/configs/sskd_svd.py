"""KD-SVD: relations between singular vectors of consecutive points (Lee, Kim and Song, ECCV 2018).

Run:    python -m distill.main --config=distill/configs/sskd_svd.py
Smoke:  python -m distill.main --config=distill/configs/sskd_svd.py:smoke
Data:   72 characters in 12 font styles, 30 coloured 24-pixel images of each to learn from (embedded, no download).
Expect: see distill/README.md (ours).
Official, CIFAR-100, last epoch: toolbox (ResNet8, ResNet32) 73.68 % against 71.76 alone; the paper's VGG 65.05 against
61.37, MobileNet 58.15 against 56.15, ResNeXt 65.43 against 64.00 %.

Every field is explained in student.py; this file names what differs. The same variants as there.
"""

from ml_collections import ConfigDict

from common.config import select
from distill.configs import student

ECCV = {"options.form": "eccv", "options.svd_gradient": "paper"}  # the code of the paper
VARIANTS = student.variants(cifar100_vgg=ECCV, cifar100_mobilenet=ECCV, cifar100_resnext=ECCV)


def get_config(variant: str = "") -> ConfigDict:
    config = student.base()
    config.name = config.method = "sskd_svd"
    config.options = ConfigDict(
        {
            "form": "toolbox",  # or "eccv": the code of the paper
            "vectors": 1,  # a point; several with the form eccv only
            "svd_gradient": "toolbox",  # or "paper", "published", "exact": distill/svd.py
            "svd_backend": "auto",  # of the student: "svd" or "eigen", by the shape of the map
            "teacher_svd": "auto",  # or "svd", "eigen", "power"
            "canonical_sign": True,  # False: the decomposition's own signs (official)
            "published_near_square": False,  # True: nearly square maps give no gradient (official)
        }
    )
    return select(config, variant, VARIANTS)
