"""Losses of the pretext tasks, with gradients, against the golden arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from multitask import losses, pseudo_labels
from tests.multitask import golden

ARRAYS = golden.load("task_losses").mapped(jnp.asarray)


def matches(function, argument, loss, gradient):
    value, slope = jax.value_and_grad(function)(argument)
    np.testing.assert_allclose(value, ARRAYS[loss], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, ARRAYS[gradient], rtol=1e-5, atol=1e-6)


def test_reconstruction():
    target, mask, predicted = ARRAYS["recon_target"], ARRAYS["recon_mask"], ARRAYS["recon_pred"]
    matches(lambda p: losses.reconstruction_loss(p, target), predicted, "recon_loss", "recon_grad")
    matches(lambda p: losses.reconstruction_loss(p, target, mask), predicted, "recon_masked_loss", "recon_masked_grad")


def test_rotation():
    logits, labels = ARRAYS["rot_logits"], ARRAYS["rot_labels"]
    matches(lambda x: losses.cross_entropy(x, labels).mean(), logits, "rot_loss", "rot_grad")
    np.testing.assert_allclose(jnp.mean(jnp.argmax(logits, -1) == labels), ARRAYS["rot_acc"])


def test_clustering():
    labels, logits = ARRAYS["clu_labels"], ARRAYS["clu_logits"]
    weights = pseudo_labels.cluster_weights(labels, 7)
    np.testing.assert_allclose(weights, ARRAYS["clu_weights"], rtol=1e-5)

    def weighted(x):
        return losses.weighted_mean(losses.cross_entropy(x, labels), weights)

    matches(weighted, logits, "clu_loss_weighted", "clu_grad_weighted")
    matches(lambda x: losses.cross_entropy(x, labels).mean(), logits, "clu_loss", "clu_grad")


def test_adversarial():
    real, fake = ARRAYS["adv_real"], ARRAYS["adv_fake"]
    matches(lambda r: losses.discriminator_loss(r, fake), real, "adv_loss_d", "adv_grad_real")
    matches(lambda f: losses.discriminator_loss(real, f), fake, "adv_loss_d", "adv_grad_fake")
    matches(losses.generator_loss, fake, "adv_loss_g", "adv_grad_g_fake")


def test_nothing_to_reconstruct_is_no_nan():
    zero = jnp.zeros((1, 2, 2, 3))
    assert losses.reconstruction_loss(zero + 1, zero, jnp.zeros((1, 2, 2, 1))) == 0
    assert losses.weighted_mean(jnp.ones(3), jnp.zeros(3)) == 0
