"""The five architectures, one file each."""

from vit_small.models.cait import CaiT
from vit_small.models.pit import PiT
from vit_small.models.swin import Swin
from vit_small.models.t2t import T2T
from vit_small.models.vit import ViT

ARCHITECTURES = {"vit": ViT, "t2t": T2T, "cait": CaiT, "pit": PiT, "swin": Swin}

__all__ = ["ARCHITECTURES", "T2T", "CaiT", "PiT", "Swin", "ViT"]
