"""How alike two sets of features of the same images are: linear CKA (Kornblith, Norouzi, Lee, Hinton, ICML 2019).

Both forms are invariant to rotations and isotropic scaling of the features and lie at 1 for equal ones. They are taken
from Gram matrices [n, n], so that features of any width cost n² numbers.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Gram = Float[Array, "n n"]


def gram(features: Float[Array, "n ..."]) -> Gram:
    """Inner products of the features, flattened per image and centred over the images."""
    flat = features.reshape(features.shape[0], -1)
    centred = flat - jnp.mean(flat, axis=0, keepdims=True)
    return jnp.matmul(centred, centred.T, precision="highest")


def linear_cka(a: Gram, b: Gram) -> Float[Array, ""]:
    """‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred features X, Y with Gram matrices `a`, `b`.

    In [0, 1]; too high where the features are wider than the images are many.
    """
    return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a * a) * jnp.sum(b * b))


def linear_cka_unbiased(a: Gram, b: Gram) -> Float[Array, ""]:
    """The same with the unbiased estimator of HSIC (Song et al., JMLR 2012): about 0 for independent features, and
    possibly below. Needs at least 4 images."""
    return _hsic(a, b) / jnp.sqrt(_hsic(a, a) * _hsic(b, b))


def _hsic(a: Gram, b: Gram) -> Float[Array, ""]:
    n = a.shape[0]
    others = 1.0 - jnp.eye(n, dtype=a.dtype)
    a, b = a * others, b * others
    total = jnp.sum(a * b) + jnp.sum(a) * jnp.sum(b) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * jnp.sum(jnp.sum(a, axis=0) * jnp.sum(b, axis=0))) / (n * (n - 3))
