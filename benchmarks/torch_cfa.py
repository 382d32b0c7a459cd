"""CFA on ResNet-18 in plain PyTorch, computed as the official code does, from our weights: to compare speeds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

EPSILON = 1e-5


def tensors(variables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """{path: tensor} of nested dicts; convolution kernels [h, w, I, O] become [O, I, h, w]."""
    found = {}
    for name, value in variables.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{path}": tensor for path, tensor in tensors(value).items()}
        else:
            array = np.array(value)
            found[name] = torch.from_numpy(
                np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)
            )
    return found


def _convolve(w: dict, name: str, x: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    return F.conv2d(x, w[f"params/{name}/kernel"], stride=stride, padding=padding)


def _norm(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    mean, var = (w[f"batch_stats/{name}/{part}"] for part in ("mean", "var"))
    return F.batch_norm(x, mean, var, w[f"params/{name}/scale"], w[f"params/{name}/bias"], eps=EPSILON)


def taps(w: dict, x: torch.Tensor) -> list[torch.Tensor]:
    """Three leaky taps of normalised images [n, 3, h, w]."""
    x = F.max_pool2d(F.relu(_norm(w, "bn1", _convolve(w, "conv1", x, 2, 3))), 3, 2, 1)
    found = []
    for layer in (1, 2, 3):
        total = x
        for block in (0, 1):
            name, stride = f"layer{layer}_{block}", 2 if layer > 1 and block == 0 else 1
            y = F.relu(_norm(w, f"{name}/bn1", _convolve(w, f"{name}/conv1", x, stride, 1)))
            y = _norm(w, f"{name}/bn2", _convolve(w, f"{name}/conv2", y, 1, 1))
            if f"params/{name}/downsample_0/kernel" in w:
                x = _norm(w, f"{name}/downsample_1", _convolve(w, f"{name}/downsample_0", x, stride, 0))
            total = x + y
            x = F.relu(total)
        found.append(F.leaky_relu(total, 0.01))
    return found


def describe(kernel: torch.Tensor, bias: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
    """Pool, resize, concatenate, coordinates, 1x1 convolution: [n, patches, width]."""
    pooled = [F.avg_pool2d(tap, 3, 1, 1) for tap in features]
    size = pooled[0].shape[2:]
    parts = [pooled[0], *(F.interpolate(tap, size, mode="bilinear", align_corners=False) for tap in pooled[1:])]
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    coordinates = torch.stack([rows, columns])[None].expand(len(pooled[0]), -1, -1, -1)
    phi = F.conv2d(torch.cat([*parts, coordinates], 1), kernel.T[:, :, None, None], bias)
    return phi.flatten(2).transpose(1, 2)


def sq_distances(phi: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """[n, patches, entries], at least 0."""
    squares = phi.square().sum(-1)[:, :, None] + bank.square().sum(-1)
    return (squares - 2 * phi @ bank.T).clamp_min(0)


def loss(phi: torch.Tensor, bank: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Coupled hyperspheres with K = J = 3."""
    nearest = sq_distances(phi, bank).topk(6, largest=False).values
    square = radius.square()
    return (F.relu(nearest[..., :3] - square).mean() + F.relu(square - nearest[..., 3:] - 0.1).mean()) / 1e-3


class Trainer:
    """Train step and patch scores; `cached` features are computed once, as ours may be."""

    def __init__(self, backbone: Mapping[str, Any], kernel: Any, bias: Any, bank: Any):
        self.backbone, self.bank = tensors(backbone), torch.from_numpy(np.array(bank))
        self.kernel, self.bias = (torch.from_numpy(np.array(leaf)).requires_grad_() for leaf in (kernel, bias))
        self.radius = torch.tensor(1e-5, requires_grad=True)
        parameters = [self.kernel, self.bias, self.radius]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=5e-4, amsgrad=True)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return taps(self.backbone, images)

    def step(self, features: list[torch.Tensor]) -> float:
        """One step; the loss before it."""
        self.optimizer.zero_grad()
        value = loss(describe(self.kernel, self.bias, features), self.bank, self.radius)
        value.backward()
        self.optimizer.step()
        return value.item()

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Soft-min scores [n, patches]."""
        with torch.no_grad():
            phi = describe(self.kernel, self.bias, self.features(images))
            nearest = sq_distances(phi, self.bank).topk(3, largest=False).values.sqrt()
            return nearest[..., 0] * F.softmin(nearest, -1)[..., 0]
