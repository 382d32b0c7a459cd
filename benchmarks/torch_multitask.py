"""The joint pre-training step (autoencoder, rotation, clustering, N-pair regulariser, teacher) in plain PyTorch, from
our weights: to compare speeds. One forward pass per task, as code that adds up losses does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.torch_cfa import tensors

STRIDES = (2, 2, 1, 1)


def _conv_norm(w: dict, stats: dict, name: str, x: torch.Tensor, stride: int, train: bool) -> torch.Tensor:
    y = F.conv2d(x, w[f"{name}_conv/kernel"], stride=stride, padding=1)
    mean, var = stats[f"{name}_bn/mean"], stats[f"{name}_bn/var"]
    return F.relu(F.batch_norm(y, mean, var, w[f"{name}_bn/scale"], w[f"{name}_bn/bias"], train, 0.1, 1e-5))


def _part(w: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): leaf for name, leaf in w.items() if name.startswith(prefix)}


def encode(w: dict, stats: dict, x: torch.Tensor, train: bool) -> torch.Tensor:
    """The last map of conv4."""
    w, stats = _part(w, "backbone/"), _part(stats, "backbone/")
    for layer, stride in enumerate(STRIDES, 1):
        x = _conv_norm(w, stats, f"layer{layer}", x, stride, train)
    return x


def _dense(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def project(w: dict, task: str, pooled: torch.Tensor) -> torch.Tensor:
    return _dense(w, f"projections/{task}/Dense_1", F.relu(_dense(w, f"projections/{task}/Dense_0", pooled)))


def decode(w: dict, stats: dict, x: torch.Tensor, doublings: int) -> torch.Tensor:
    """Nearest-neighbour doublings and a last convolution."""
    w, stats = _part(w, "heads/autoencoder/"), _part(stats, "heads/autoencoder/")
    for place in range(doublings):
        x = _conv_norm(w, stats, f"up{place}", F.interpolate(x, scale_factor=2), 1, True)
    return F.conv2d(x, w["out/kernel"], w["out/bias"], padding=1)


class Trainer:
    """Adam on the sum of the losses and beta times the regulariser; the teacher follows."""

    def __init__(self, params: Mapping[str, Any], stats: Mapping[str, Any], beta: float, alpha: float):
        self.w, self.stats = tensors(params), tensors(stats)
        self.teacher = {name: leaf.clone() for name, leaf in self.w.items() if not name.startswith("heads")}
        self.teacher_stats = {name: leaf.clone() for name, leaf in self.stats.items()}
        for leaf in self.w.values():
            leaf.requires_grad_()
        self.beta, self.alpha, self.steps = beta, alpha, 0
        self.doublings = sum(name.endswith("_conv/kernel") for name in self.w if name.startswith("heads/autoencoder"))
        self.optimizer = torch.optim.Adam(list(self.w.values()), lr=1e-3)

    def step(self, images: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
        """One step on normalised images [n, 3, h, w] and their pseudo-labels; the loss before it."""
        with torch.no_grad():
            pooled = encode(self.teacher, self.teacher_stats, images, False).mean((2, 3))
            unit = [F.normalize(project(self.teacher, task, pooled), dim=-1) for task in TASKS]
            anchors = F.normalize(torch.stack(unit).mean(0), dim=-1)
        turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
        losses, terms = [], []
        for task, view in zip(TASKS, (images, turned, images), strict=True):
            features = encode(self.w, self.stats, view, True)
            pooled = features.mean((2, 3))
            losses.append(self._loss(task, features, pooled, images, labels, weights))
            u = project(self.w, task, pooled)
            z = F.normalize(u.reshape(len(images), -1, u.shape[-1]).mean(1), dim=-1)
            terms.append(F.cross_entropy(z @ anchors.T / 0.1, torch.arange(len(images))))
        loss = torch.stack(losses).sum() + self.beta * torch.stack(terms).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._follow()
        return loss.item()

    def _loss(self, task: str, features: Any, pooled: Any, images: Any, labels: Any, weights: Any) -> torch.Tensor:
        if task == "autoencoder":
            return F.mse_loss(decode(self.w, self.stats, features, self.doublings), images)
        logits = _dense(self.w, f"heads/{task}/Dense_0", pooled)
        if task == "rotation":
            return F.cross_entropy(logits, torch.arange(4).repeat(len(images)))
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (losses * weights).sum() / weights.sum()

    def _follow(self) -> None:
        self.steps += 1
        alpha = min(self.alpha, 1 - 1 / self.steps)
        with torch.no_grad():
            for mine, theirs in ((self.teacher, self.w), (self.teacher_stats, self.stats)):
                for name, leaf in mine.items():
                    leaf.mul_(alpha).add_(theirs[name], alpha=1 - alpha)


TASKS = ("autoencoder", "rotation", "clustering")


def as_batch(images: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[torch.Tensor, ...]:
    """What `Trainer.step` takes, from normalised [n, h, w, 3]."""
    return (
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(weights),
    )
