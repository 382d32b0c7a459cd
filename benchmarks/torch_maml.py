"""The yardstick: second-order MAML on Conv4 as a plain PyTorch loop over tasks and inner steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def to_torch(
    net: dict[str, dict[str, Any]], tasks: Any, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Weights of `models.Conv4` and images as PyTorch lays them out: NCHW, OIHW, head [classes, features]."""
    parameters = {}
    filters = net["conv3"]["kernel"].shape[3]
    for layer, leaves in net.items():
        for name, leaf in leaves.items():
            array = np.asarray(leaf)
            if name == "kernel" and layer == "head":
                side = int((array.shape[0] // filters) ** 0.5)
                array = array.reshape(side, side, filters, -1).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
            elif name == "kernel":
                array = array.transpose(3, 2, 0, 1)
            parameters[f"{layer}/{name}"] = torch.tensor(np.ascontiguousarray(array), dtype=dtype).requires_grad_()
    data = []
    for leaf in tasks:
        array = np.asarray(leaf)
        if array.ndim == 5:
            data.append(torch.tensor(np.ascontiguousarray(array.transpose(0, 1, 4, 2, 3)), dtype=dtype))
        else:
            data.append(torch.tensor(array, dtype=torch.int64))
    return parameters, data


def from_torch(name: str, array: np.ndarray, filters: int) -> np.ndarray:
    """A gradient of one of `to_torch`'s parameters, laid out as in `models.Conv4`."""
    if name == "head/kernel":
        side = int((array.shape[1] // filters) ** 0.5)
        return array.reshape(-1, filters, side, side).transpose(2, 3, 1, 0).reshape(array.shape[1], -1)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _forward(x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    for i in range(4):
        x = F.conv2d(x, weights[f"conv{i}/kernel"], padding=1)
        x = F.batch_norm(x, None, None, weights[f"norm{i}/scale"], weights[f"norm{i}/shift"], training=True)
        x = F.max_pool2d(F.leaky_relu(x, 0.01), 2)
    return F.linear(x.flatten(1), weights["head/kernel"], weights["head/bias"])


def meta_step(
    parameters: dict[str, torch.Tensor], data: list[torch.Tensor], num_steps: int, learning_rate: float
) -> Callable[[], torch.Tensor]:
    """A function that does one meta-step with Adam, leaves the gradients in `parameters`, and gives the loss."""
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
    adapted = [name for name in parameters if not name.startswith("norm")]

    def task_loss(support_x, support_y, query_x, query_y):
        weights = dict(parameters)
        for _ in range(num_steps):
            loss = F.cross_entropy(_forward(support_x, weights), support_y)
            gradients = torch.autograd.grad(loss, [weights[name] for name in adapted], create_graph=True)
            for name, gradient in zip(adapted, gradients, strict=True):
                weights[name] = weights[name] - learning_rate * gradient
        return F.cross_entropy(_forward(query_x, weights), query_y)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([task_loss(*task) for task in zip(*data, strict=True)]).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
