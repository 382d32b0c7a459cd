"""The AutoAugment policies that the official code uses for CIFAR, SVHN and (Tiny-)ImageNet, and what levels mean.

A policy is 25 sub-policies; each is two operations in order, and each operation comes with its probability and its
level 0..9 (Cubuk et al., "AutoAugment", tables 7 to 9; the tables as in the official code of this paper).
"""

import numpy as np
from jaxtyping import Float32, Int32

OPERATIONS = (
    "shearX",
    "shearY",
    "translateX",
    "translateY",
    "rotate",
    "color",
    "posterize",
    "solarize",
    "contrast",
    "sharpness",
    "brightness",
    "autocontrast",
    "equalize",
    "invert",
    "identity",  # ours: what happens to an image whose operation was not drawn
)
INDEX = {name: index for index, name in enumerate(OPERATIONS)}
LEVELS = 10

_SLOPES = np.linspace(0.0, 0.3, LEVELS)
_SHIFTS = np.linspace(0.0, 150.0 / 331.0, LEVELS)
_STRENGTHS = np.linspace(0.0, 0.9, LEVELS)
_NONE = np.zeros(LEVELS)

# [operation, level]: slope, fraction of the side, degrees, distance of the enhancement factor from 1, bits kept, and
# the first grey level that is inverted.
MAGNITUDES = np.stack(
    [
        *(_SLOPES, _SLOPES),
        *(_SHIFTS, _SHIFTS),
        np.linspace(0.0, 30.0, LEVELS),
        _STRENGTHS,
        np.round(np.linspace(8.0, 4.0, LEVELS)),
        np.linspace(256.0, 0.0, LEVELS),
        *(_STRENGTHS, _STRENGTHS, _STRENGTHS),
        *(_NONE, _NONE, _NONE, _NONE),
    ]
)

SubPolicy = tuple[float, str, int, float, str, int]

CIFAR10: tuple[SubPolicy, ...] = (
    (0.1, "invert", 7, 0.2, "contrast", 6),
    (0.7, "rotate", 2, 0.3, "translateX", 9),
    (0.8, "sharpness", 1, 0.9, "sharpness", 3),
    (0.5, "shearY", 8, 0.7, "translateY", 9),
    (0.5, "autocontrast", 8, 0.9, "equalize", 2),
    (0.2, "shearY", 7, 0.3, "posterize", 7),
    (0.4, "color", 3, 0.6, "brightness", 7),
    (0.3, "sharpness", 9, 0.7, "brightness", 9),
    (0.6, "equalize", 5, 0.5, "equalize", 1),
    (0.6, "contrast", 7, 0.6, "sharpness", 5),
    (0.7, "color", 7, 0.5, "translateX", 8),
    (0.3, "equalize", 7, 0.4, "autocontrast", 8),
    (0.4, "translateY", 3, 0.2, "sharpness", 6),
    (0.9, "brightness", 6, 0.2, "color", 8),
    (0.5, "solarize", 2, 0.0, "invert", 3),
    (0.2, "equalize", 0, 0.6, "autocontrast", 0),
    (0.2, "equalize", 8, 0.6, "equalize", 4),
    (0.9, "color", 9, 0.6, "equalize", 6),
    (0.8, "autocontrast", 4, 0.2, "solarize", 8),
    (0.1, "brightness", 3, 0.7, "color", 0),
    (0.4, "solarize", 5, 0.9, "autocontrast", 3),
    (0.9, "translateY", 9, 0.7, "translateY", 9),
    (0.9, "autocontrast", 2, 0.8, "solarize", 3),
    (0.8, "equalize", 8, 0.1, "invert", 3),
    (0.7, "translateY", 9, 0.9, "autocontrast", 1),
)

SVHN: tuple[SubPolicy, ...] = (
    (0.9, "shearX", 4, 0.2, "invert", 3),
    (0.9, "shearY", 8, 0.7, "invert", 5),
    (0.6, "equalize", 5, 0.6, "solarize", 6),
    (0.9, "invert", 3, 0.6, "equalize", 3),
    (0.6, "equalize", 1, 0.9, "rotate", 3),
    (0.9, "shearX", 4, 0.8, "autocontrast", 3),
    (0.9, "shearY", 8, 0.4, "invert", 5),
    (0.9, "shearY", 5, 0.2, "solarize", 6),
    (0.9, "invert", 6, 0.8, "autocontrast", 1),
    (0.6, "equalize", 3, 0.9, "rotate", 3),
    (0.9, "shearX", 4, 0.3, "solarize", 3),
    (0.8, "shearY", 8, 0.7, "invert", 4),
    (0.9, "equalize", 5, 0.6, "translateY", 6),
    (0.9, "invert", 4, 0.6, "equalize", 7),
    (0.3, "contrast", 3, 0.8, "rotate", 4),
    (0.8, "invert", 5, 0.0, "translateY", 2),
    (0.7, "shearY", 6, 0.4, "solarize", 8),
    (0.6, "invert", 4, 0.8, "rotate", 4),
    (0.3, "shearY", 7, 0.9, "translateX", 3),
    (0.1, "shearX", 6, 0.6, "invert", 5),
    (0.7, "solarize", 2, 0.6, "translateY", 7),
    (0.8, "shearY", 4, 0.8, "invert", 8),
    (0.7, "shearX", 9, 0.8, "translateY", 3),
    (0.8, "shearY", 5, 0.7, "autocontrast", 3),
    (0.7, "shearX", 2, 0.1, "invert", 5),
)

IMAGENET: tuple[SubPolicy, ...] = (
    (0.4, "posterize", 8, 0.6, "rotate", 9),
    (0.6, "solarize", 5, 0.6, "autocontrast", 5),
    (0.8, "equalize", 8, 0.6, "equalize", 3),
    (0.6, "posterize", 7, 0.6, "posterize", 6),
    (0.4, "equalize", 7, 0.2, "solarize", 4),
    (0.4, "equalize", 4, 0.8, "rotate", 8),
    (0.6, "solarize", 3, 0.6, "equalize", 7),
    (0.8, "posterize", 5, 1.0, "equalize", 2),
    (0.2, "rotate", 3, 0.6, "solarize", 8),
    (0.6, "equalize", 8, 0.4, "posterize", 6),
    (0.8, "rotate", 8, 0.4, "color", 0),
    (0.4, "rotate", 9, 0.6, "equalize", 2),
    (0.0, "equalize", 7, 0.8, "equalize", 8),
    (0.6, "invert", 4, 1.0, "equalize", 8),
    (0.6, "color", 4, 1.0, "contrast", 8),
    (0.8, "rotate", 8, 1.0, "color", 2),
    (0.8, "color", 8, 0.8, "solarize", 7),
    (0.4, "sharpness", 7, 0.6, "invert", 8),
    (0.6, "shearX", 5, 1.0, "equalize", 9),
    (0.4, "color", 0, 0.6, "equalize", 3),
    (0.4, "equalize", 7, 0.2, "solarize", 4),
    (0.6, "solarize", 5, 0.6, "autocontrast", 5),
    (0.6, "invert", 4, 1.0, "equalize", 8),
    (0.6, "color", 4, 1.0, "contrast", 8),
    (0.8, "equalize", 8, 0.6, "equalize", 3),
)

POLICIES = {"cifar10": CIFAR10, "svhn": SVHN, "imagenet": IMAGENET}


def policy_table(name: str) -> tuple[Float32[np.ndarray, "25 2"], Int32[np.ndarray, "25 2"], Int32[np.ndarray, "25 2"]]:
    """Probabilities, operations (indices into OPERATIONS) and levels of a policy, [sub-policy, first or second]."""
    policy = POLICIES[name]
    probabilities = np.array([[first, second] for first, _, _, second, _, _ in policy], np.float32)
    operations = np.array([[INDEX[first], INDEX[second]] for _, first, _, _, second, _ in policy], np.int32)
    levels = np.array([[first, second] for _, _, first, _, _, second in policy], np.int32)
    return probabilities, operations, levels
