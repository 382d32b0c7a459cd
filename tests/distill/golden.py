"""The golden files of the official implementations, and comparison relative to the largest entry of each array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests import golden_files


def _quick_to_compile():
    """Compiler options that quarter the time, for programs that run once; none where this build does not know them."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


compiled = functools.partial(jax.jit, compiler_options=_quick_to_compile())

VALUES, GRADIENTS, MODULE_GRADIENTS = 1e-5, 1e-4, 3e-4


def load(name):
    """The arrays of a file, in the precision of the test (float32, or float64 under the fixture)."""
    return golden_files.load("distill", name).mapped(lambda array: jnp.asarray(array, jnp.result_type(float)))


def close(found, expected, tolerance=VALUES, name=""):
    """Raise unless shapes agree and all differences are within tolerance times the largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest, err_msg=name)


def close_or_zero(found, expected, tolerance, name=""):
    """`close`, and exactly 0 where the golden array is."""
    close(found, expected, tolerance, name)
    assert np.any(np.asarray(expected)) or not np.any(np.asarray(found)), name


def flip(vectors, stored):
    """Columns of `vectors` (traced or not) with the signs of the stored ones."""
    if not isinstance(vectors, jax.core.Tracer):  # without compiling
        vectors, stored = np.asarray(vectors), np.asarray(stored)
        return vectors * np.sign(np.sum(vectors * stored, axis=1, keepdims=True))
    return vectors * lax.stop_gradient(jnp.sign(jnp.sum(vectors * stored, axis=1, keepdims=True)))


def close_trees(found, expected, tolerance=VALUES):
    """Every leaf by `close`; both must have the same leaves."""
    found, expected = (jax.tree_util.tree_leaves_with_path(tree) for tree in (found, expected))
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (path, one), (_, other) in zip(found, expected, strict=True):
        close(one, other, tolerance, jax.tree_util.keystr(path))


def _layers(stored, prefix, names):
    """{our name: {our parameter: array}} of official layers; "Layer" -> weights and biases, gamma and beta, ..."""
    kinds = {"weights": "kernel", "biases": "bias", "gamma": "scale", "beta": "bias"}
    found = {
        ours: {kinds[k]: stored[f"{prefix}/{name}/{k}"] for k in kinds if f"{prefix}/{name}/{k}" in stored}
        for ours, name in names.items()
    }
    return {ours: layer for ours, layer in found.items() if layer}


def _moving(stored, prefix, names):
    return {
        ours: {"mean": stored[f"{prefix}/{name}/moving_mean"], "variance": stored[f"{prefix}/{name}/moving_variance"]}
        for ours, name in names.items()
    }


ATTENTION = {
    "sender": "Attention/Sfc",
    "receiver": "Attention/Rfc",
    "hidden": "Estimator/fc0",
    "estimate": "Estimator/fc1",
}
ATTENTION_NORMS = {"sender_norm": "Attention/Sbn", "receiver_norm": "Attention/Rbn", "hidden_norm": "Estimator/bn0"}
MESSAGE = {"edge": "Edge/Efc", "message": "Message/Mfc", "gate": "Message/Gfc"}
MESSAGE_NORMS = {"edge_norm": "Edge/Ebn", "message_norm": "Message/Mbn", "gate_norm": "Message/Gbn"}


def attention(stored, prefix, stats=False):
    """Parameters or statistics of an attention network."""
    return _moving(stored, prefix, ATTENTION_NORMS) if stats else _layers(stored, prefix, ATTENTION | ATTENTION_NORMS)


def embedding_module(stored, prefix, stats=False):
    """Parameters or statistics of IEP's message passing network with its black-box head."""
    black_box = attention(stored, f"{prefix}/MHA/Attention_Knowledge", stats)
    inner = f"{prefix}/MPNN/MPNN"
    found = _moving(stored, inner, MESSAGE_NORMS) if stats else _layers(stored, inner, MESSAGE | MESSAGE_NORMS)
    return found | {"black_box": black_box}
