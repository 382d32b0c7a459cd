"""The yardstick: the ViT of the SPT and LSA paper in plain PyTorch, trained by AdamW."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Pre-norm block; attention by PyTorch's own fused function where LSA does not forbid it."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, lsa: bool):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.fixed_scale = head_dim**-0.5
        self.scale = nn.Parameter(torch.full((heads,), self.fixed_scale)) if lsa else None

    def forward(self, x):
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.scale is not None:
            logits = q @ k.transpose(-1, -2) * self.scale[:, None, None]
            diagonal = torch.eye(tokens, dtype=torch.bool, device=x.device)
            attended = logits.masked_fill(diagonal, -torch.inf).softmax(-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, scale=self.fixed_scale)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Images [B, 3, H, W] -> logits; `spt`: shifted patches, LayerNorm, linear."""

    def __init__(self, classes, patch, tokens, width, depth, heads, head_dim, hidden, spt: bool, lsa: bool):
        super().__init__()
        self.patch, self.spt = patch, spt
        features = (5 if spt else 1) * 3 * patch * patch
        self.norm_patches = nn.LayerNorm(features) if spt else nn.Identity()
        self.embed = nn.Linear(features, width)
        self.token, self.position = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(tokens + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, head_dim, hidden, lsa) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        if self.spt:
            s, (height, width) = self.patch // 2, x.shape[2:]
            padded = F.pad(x, (s, s, s, s))
            views = [padded[:, :, i : i + height, j : j + width] for i in (0, 2 * s) for j in (0, 2 * s)]
            x = torch.cat([x, *views], 1)
        batch, channels, height, width = x.shape
        p = self.patch
        x = (
            x.view(batch, channels, height // p, p, width // p, p)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(batch, -1, p * p * channels)
        )
        x = self.embed(self.norm_patches(x))
        x = torch.cat([self.token.expand(batch, 1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x)[:, 0]))


def load(model: ViT, params: Mapping[str, Any]) -> None:
    """Take the weights of `vit_small.models.ViT`, so that both compute the same."""

    def put(parameter: Any, array: Any, transpose: bool = False) -> None:
        values = np.asarray(array).T if transpose else np.asarray(array)
        parameter.data.copy_(torch.from_numpy(np.array(values)))

    def linear(layer: Any, leaves: Mapping[str, Any], index: int | None = None) -> None:
        put(layer.weight, leaves["kernel"] if index is None else leaves["kernel"][index], True)
        if layer.bias is not None:
            put(layer.bias, leaves["bias"] if index is None else leaves["bias"][index])

    if model.spt:
        shifted = params["embedding"]["shifted"]
        norm: Any = model.norm_patches
        put(norm.weight, shifted["norm_scale"])
        put(norm.bias, shifted["norm_bias"])
        linear(model.embed, shifted)
    else:
        linear(model.embed, params["embedding"]["projection"])
    put(model.token, params["class_token"])
    put(model.position, params["position"])
    blocks = params["blocks"]
    layers: Any = model.blocks
    for i, block in enumerate(layers):
        for name in ("norm1", "norm2"):
            put(getattr(block, name).weight, blocks[name]["scale"][i])
            put(getattr(block, name).bias, blocks[name]["bias"][i])
        linear(block.qkv, blocks["attention"]["qkv"], i)
        linear(block.out, blocks["attention"]["out"], i)
        linear(block.up, blocks["mlp"]["up"], i)
        linear(block.down, blocks["mlp"]["down"], i)
        if block.scale is not None:
            put(block.scale, blocks["attention"]["inverse_temperature"][i])
    put(model.norm.weight, params["norm"]["scale"])
    put(model.norm.bias, params["norm"]["bias"])
    linear(model.head, params["head"])


def train_step(model: ViT, images: np.ndarray, labels: np.ndarray, smoothing: float) -> Callable[[], float]:
    """A function that makes one AdamW step on this batch [B, H, W, C] and returns its loss before the step."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    y = torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)

    def step() -> float:
        loss = F.cross_entropy(model(x), y, label_smoothing=smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
