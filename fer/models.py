"""Encoder, latent regressor and task header: latents of a batch first, then scores of any latents.

Names are those of the official code (`lin0`, `bn1`, `linear1`), so that its weights fit.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from common.models.alexnet import AlexNet
from common.models.resnet import ResNet
from fer.batchnorm import BatchNorm
from fer.layers import linear
from fer.mixer import Mixer

BACKBONES = ("cnn", "alexnet", "resnet18", "mixer")


class SmallCNN(nn.Module):
    """Blocks of 3x3 convolution, batch norm, ReLU and 2x2 max-pooling, flattened; for the embedded data."""

    filters: Sequence[int] = (12, 24, 48)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B d"]:
        for i, filters in enumerate(self.filters):
            x = nn.Conv(filters, (3, 3), padding=1, use_bias=False, name=f"conv{i}")(x)
            x = nn.max_pool(jax.nn.relu(BatchNorm(name=f"bn{i}")(x, train)), (2, 2), (2, 2))
        return x.reshape(x.shape[0], -1)


class ResNet18(nn.Module):
    """ResNet-18 with its 1000-way classifier: the official latent regressor reads the 1000 logits."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], train: bool = False) -> Float[Array, "B 1000"]:
        return ResNet(("logits",), train=train, name="resnet")(x)["logits"]


class LatentRegressor(nn.Module):
    """Dropout and linear layers to the latent, then batch norm and ReLU, so that latents are not negative.

    `hidden` layers: of AlexNet (256,), of ResNet-18 (512, 256). `norms`: names of the batch norms behind the last two
    layers (ResNet-18, "bn1", "bn2") or behind the last one (AlexNet, "bn").
    """

    latent: int
    hidden: Sequence[int] = (256,)
    norms: Sequence[str] = ("bn",)
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x: Float[Array, "B d"], train: bool = False) -> Float[Array, "B l"]:
        widths = (*self.hidden, self.latent)
        for i, width in enumerate(widths):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = linear(width, x.shape[-1], f"lin{i}")(x)
            place = i - len(widths) + len(self.norms)
            if place >= 0:
                x = BatchNorm(name=self.norms[place])(x, train)
            x = jax.nn.relu(x)
        return x


class Header(nn.Module):
    """Linear to `width`, batch norm (over the batch, or over each group by itself), ReLU, linear to the outputs."""

    width: int
    outputs: int

    @nn.compact
    def __call__(
        self, latents: Float[Array, "B l"], train: bool = False, members: Float[Array, "N B"] | None = None
    ) -> Float[Array, "B k"]:
        hidden = linear(self.width, latents.shape[-1], "linear1")(latents)
        hidden = jax.nn.relu(BatchNorm(name="bn1")(hidden, train, members))
        return linear(self.outputs, self.width, "linear2")(hidden)


class Network(nn.Module):
    """The whole: parameters under "encoder", "regressor" (none for the Mixer) and "header"."""

    encoder: nn.Module
    regressor: nn.Module | None
    header: Header

    def latents(self, images: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B l"]:
        """Features that identities are matched by."""
        features = self.encoder(images, train)
        return features if self.regressor is None else self.regressor(features, train)

    def scores(
        self, latents: Float[Array, "B l"], train: bool = False, members: Float[Array, "N B"] | None = None
    ) -> Float[Array, "B k"]:
        """Valence and arousal, or logits; each group normalised by itself where `members` are given."""
        return self.header(latents, train, members)

    def __call__(self, images: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B k"]:
        return self.scores(self.latents(images, train), train)


def make_network(
    backbone: str,
    latent: int,
    header_factor: int,
    outputs: int,
    dropout: float,
    filters: Sequence[int] = (),
    hidden: int = 0,
    patch: int = 16,
) -> Network:
    """One of `BACKBONES` in its published form.

    Args:
      latent: d, of the features that are matched.
      header_factor: the header's width over `latent`; 20 officially.
      outputs: 2 for valence and arousal, or the number of categories.
      dropout: in the latent regressor; 0.5 officially.
      filters: of the embedded default's "cnn".
      hidden: of the "cnn"'s regressor; 0: straight to the latent.
      patch: of the Mixer.
    """
    header = Header(header_factor * latent, outputs)
    if backbone == "mixer":
        return Network(Mixer(latent, patch=patch), None, header)
    if backbone == "alexnet":
        return Network(AlexNet(), LatentRegressor(latent, dropout=dropout), header)
    if backbone == "resnet18":
        return Network(ResNet18(), LatentRegressor(latent, (512, 256), ("bn1", "bn2"), dropout), header)
    inner = (hidden,) if hidden else ()
    return Network(SmallCNN(tuple(filters)), LatentRegressor(latent, inner, dropout=dropout), header)
