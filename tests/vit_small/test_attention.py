"""Every kind of attention, with and without LSA, against the official implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vit_small import official
from vit_small import lsa, windows
from vit_small.design import Design
from vit_small.layers import SelfAttention
from vit_small.models.cait import TalkingHeads
from vit_small.models.swin import SwinBlock

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
MODULES = ("vit", "pit", "t2t_token", "t2t_backbone", "cait_patch", "cait_class", "swin", "swin_shift")
DIAGONAL_MASKED = ("vit", "pit", "swin", "swin_shift")
NAMES = {  # official -> ours
    "scale": ("inverse_temperature",),
    "to_qkv.weight": ("qkv", "kernel"),
    "qkv.weight": ("qkv", "kernel"),
    "qkv.bias": ("qkv", "bias"),
    "to_q.weight": ("q", "kernel"),
    "to_kv.weight": ("kv", "kernel"),
    "to_out.0.weight": ("out", "kernel"),
    "to_out.0.bias": ("out", "bias"),
    "proj.weight": ("out", "kernel"),
    "proj.bias": ("out", "bias"),
    "mix_heads_pre_attn": ("mix_before",),
    "mix_heads_post_attn": ("mix_after",),
}


def read(prefix, kind, dtype):
    """Arrays `<prefix>.<kind>.*` under our names; the bias table of Swin apart."""
    tree, table = {}, None
    arrays = official.golden("attention").under(f"{prefix}.{kind}.")
    for name in arrays:
        array = arrays[name]
        if name == "relative_position_bias_table":
            table = jnp.asarray(array, dtype)
            continue
        path = NAMES[name]
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = jnp.asarray(array.T if path[-1] == "kernel" else array, dtype)
    return tree, table


def module_of(name, masked, strict=False):
    """The module, as a function of (parameters, x, context or bias)."""
    design = Design(learned_temperature=masked, mask_diagonal=masked)
    match name:
        case "vit" | "pit":
            return SelfAttention(3, 4, "xavier", design, 12)
        case "t2t_token":
            return SelfAttention(1, 8, "small", design, 8, scale_width=12, value_skip=True)
        case "t2t_backbone":
            return SelfAttention(2, 4, "small", design, 8)
        case "cait_patch":
            return TalkingHeads(3, 4, design, masked, strict)
        case "cait_class":
            return TalkingHeads(3, 4, design, False)
    return SelfAttention(3, 4, "torch", design, 12, qkv_bias=True)


def run(name, masked, params, table, x, context):
    module = module_of(name, masked)
    if name.startswith("cait"):
        return module.apply({"params": params}, x, x if context is None else context)
    if table is None:
        out, probabilities = module.apply({"params": params}, x)
        return (out + x if name == "t2t_backbone" else out), probabilities
    bias = table[windows.relative_position_index(4)].transpose(2, 0, 1)[None]
    if name == "swin_shift":
        mask = jnp.asarray(windows.shift_mask(8, 8, 4, 2), bias.dtype)
        bias = jnp.tile(bias + mask[:, None], (2, 1, 1, 1))
    return module.apply({"params": params}, x, bias)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_outputs_probabilities_and_gradients(name, masked, dtype):
    with jax.enable_x64(dtype == "float64"):
        arrays, prefix = official.golden("attention"), f"{name}.lsa{int(masked)}"
        params, table = read(prefix, "w", dtype)
        x = jnp.asarray(arrays[f"{prefix}.x0"], dtype)
        context = jnp.asarray(arrays[f"{prefix}.x1"], dtype) if f"{prefix}.x1" in arrays else None

        cotangent = jnp.asarray(arrays[f"{prefix}.cotangent"], dtype)

        @official.jit
        def outputs_and_gradients(*inputs):
            outputs, pull = jax.vjp(lambda *inputs: run(name, masked, *inputs), *inputs)
            return outputs, pull((cotangent, jnp.zeros_like(outputs[1])))

        (out, probabilities), gradients = outputs_and_gradients(params, table, x, context)
        grad, grad_table, grad_x, grad_context = gradients
        expected, expected_table = read(prefix, "grad", dtype)
        pairs = [(out, arrays[f"{prefix}.out"]), (grad_x, arrays[f"{prefix}.grad_x0"]), (grad_table, expected_table)]
        if context is not None:
            pairs.append((grad_context, arrays[f"{prefix}.grad_x1"]))
        if not name.startswith("t2t"):
            pairs.append((probabilities, arrays[f"{prefix}.probs"]))
        leaves, theirs = jax.tree.leaves(grad), jax.tree.leaves(expected)
        assert jax.tree.structure(grad) == jax.tree.structure(expected)
        for ours, golden in [*pairs, *zip(leaves, theirs, strict=True)]:
            if golden is not None:
                np.testing.assert_allclose(ours, golden, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        own = np.diagonal(np.asarray(probabilities), axis1=-2, axis2=-1)
        if masked and name not in ("cait_patch", "cait_class"):
            assert (own == 0).all()
        elif name != "cait_class":
            assert (own > 0).all()


def test_strict_mask_of_cait():
    arrays = official.golden("attention")
    params, _ = read("cait_patch.lsa1", "w", "float32")
    x = jnp.asarray(arrays["cait_patch.lsa1.x0"], jnp.float32)
    out, probabilities = module_of("cait_patch", True, strict=True).apply({"params": params}, x, x)
    np.testing.assert_allclose(out, arrays["cait_patch_strictmask.out"], atol=1e-5, rtol=1e-5)
    assert (np.diagonal(np.asarray(probabilities), axis1=-2, axis2=-1) == 0).all()


def test_tables_of_swin():
    arrays = official.golden("attention")
    np.testing.assert_array_equal(windows.shift_mask(8, 8, 4, 2), arrays["swin.shift_mask"])
    np.testing.assert_array_equal(windows.relative_position_index(4), arrays["swin.relative_position_index"])
    grid = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    np.testing.assert_array_equal(windows.merge(windows.partition(grid, 4), 8, 12, 4), grid)
    np.testing.assert_array_equal(windows.partition(grid, 4)[1], grid[0, :4, 4:8].reshape(16, 3))


def random_qkv(tokens=5):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal((2, 3, tokens, 4)), jnp.float32) for _ in range(3)]


def test_first_temperature_without_mask_is_plain_attention_bit_for_bit():
    q, k, v = random_qkv()
    learned = lsa.attend(q, k, v, jnp.full(3, 0.5), mask_diagonal=False)
    plain = lsa.attend(q, k, v, 0.5, mask_diagonal=False)
    for ours, theirs in zip(learned, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_own_value_has_no_influence():
    q, k, v = random_qkv()
    out, _ = lsa.attend(q, k, v, 0.5, mask_diagonal=True)
    changed, _ = lsa.attend(q, k, v.at[:, :, 2].add(1.0), 0.5, mask_diagonal=True)
    np.testing.assert_array_equal(out[:, :, 2], changed[:, :, 2])
    assert np.abs(out[:, :, 1] - changed[:, :, 1]).min() > 0


def test_one_temperature_for_all_heads_and_a_lonely_token():
    q, k, v = random_qkv()
    one, _ = lsa.attend(q, k, v, jnp.full(1, 0.7), mask_diagonal=True)
    each, _ = lsa.attend(q, k, v, jnp.full(3, 0.7), mask_diagonal=True)
    np.testing.assert_array_equal(one, each)
    with pytest.raises(ValueError, match="needs at least two tokens"):
        lsa.attend(q[:, :, :1], k[:, :, :1], v[:, :, :1], 0.5, mask_diagonal=True)


def test_half_precision_keeps_softmax_in_single():
    q, k, v = (part.astype(jnp.bfloat16) for part in random_qkv())
    out, probabilities = lsa.attend(q, k, v, 0.5, mask_diagonal=True)
    assert out.dtype == jnp.bfloat16
    assert probabilities.dtype == jnp.float32
    assert (np.diagonal(np.asarray(probabilities), axis1=-2, axis2=-1) == 0).all()


def test_attention_of_a_shifted_block_stays_in_its_region():
    """A token far away, brought into the window by the cyclic shift alone, changes nothing."""
    block = SwinBlock(2, 4, 2, 2, (8, 8), Design())
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 64, 8)), jnp.float32)
    layer = {"rate": jnp.zeros(())}
    params = official.jit(block.init)(jax.random.key(0), x, layer)
    apply = official.jit(block.apply)
    before, _ = apply(params, x, layer)
    after, _ = apply(params, x.at[:, 63].add(1.0), layer)
    moved = np.abs(after - before).max(axis=(0, 2)).reshape(8, 8) > 0
    assert moved[6:, 6:].all()
    assert not moved[:6].any()
    assert not moved[:, :6].any()
