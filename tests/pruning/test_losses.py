"""Loss of fine-tuning and objective of the search against the official numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pruning import finetune, objective
from tests.pruning.networks import golden, jit

CASES = range(4)


def case(index):
    """(labels, student, bank, temperature) and what the official code made of them."""
    found = golden("losses").under(f"ft{index}_")
    temperature = 10.0 if found["student"].shape[-1] >= 1000 else 4.0
    inputs = [jnp.asarray(found[key]) for key in ("student", "labels", "bank")]
    return (*inputs, temperature), found


@pytest.mark.parametrize("index", CASES)
def test_golden_fine_tuning(index):
    (student, labels, bank, temperature), found = case(index)

    def half(student):
        loss, used = finetune.knowledge_loss(student, labels, bank, temperature)
        return loss / 2, (loss, used)

    @jit
    def everything(student):
        best, mean = bank[:, :, 0], student.mean(1)
        theirs = [finetune.divergence(best, bank[:, :, k], temperature).sum() for k in range(bank.shape[2])]
        selected = finetune.teachers_in_use(student, labels, bank, temperature, "divergence")
        current = finetune.divergence(best, mean, temperature).sum()
        return jax.grad(half, has_aux=True)(student), selected, current, jnp.stack(theirs)

    (gradient, (loss, used)), selected, current, theirs = everything(student)
    np.testing.assert_allclose(loss, found["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, found["grad"], rtol=0, atol=1e-5 * np.abs(found["grad"]).max())
    np.testing.assert_array_equal(selected, found["selected"])
    assert used == found["selected"].sum()
    np.testing.assert_allclose(current, found["current_divergence"], rtol=1e-5)
    np.testing.assert_allclose(theirs, found["teacher_divergence"], rtol=1e-5, atol=1e-6)


def test_some_case_selects_and_some_refuses():
    chosen = [golden("losses")[f"ft{index}_selected"] for index in CASES]
    assert any(0 < row.sum() < len(row) for row in chosen)


@pytest.mark.parametrize("index", CASES)
def test_golden_search_objective(index):
    losses = golden("losses")
    (student, labels, bank, _), _ = case(index)
    logits, teacher = student[:, 0], bank[:, :, 0]
    np.testing.assert_allclose(objective.cross_entropy_sum(logits, labels), losses[f"sc{index}_ce_sum"], rtol=1e-5)
    value, gradient = jax.value_and_grad(objective.score_sum)(logits, labels, teacher)
    np.testing.assert_allclose(value, losses[f"sc{index}_score_sum"], rtol=1e-5)
    expected = losses[f"sc{index}_grad"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    one = objective.measure(np.asarray(logits)[None], np.asarray(labels), np.asarray(teacher))
    np.testing.assert_allclose(one["score"], value, rtol=1e-6)
    np.testing.assert_allclose(one["loss"], losses[f"sc{index}_ce_sum"], rtol=1e-6)


def test_gradient_of_the_divergence_in_64_bits(float64):
    random = np.random.default_rng(0)
    target, logits = (jnp.asarray(random.standard_normal((3, 5))) for _ in range(2))
    gradient = jax.grad(lambda z: finetune.divergence(target, z, 4.0).sum())(logits)
    step = 1e-6
    for i, j in ((0, 0), (1, 3), (2, 4)):
        values = [finetune.divergence(target, logits.at[i, j].add(sign * step), 4.0).sum() for sign in (1, -1)]
        assert float(gradient[i, j]) == pytest.approx(float(values[0] - values[1]) / (2 * step), abs=1e-8)


def test_filters_of_teachers():
    student = jnp.asarray([[[0.0, 0.0], [0.0, 0.0]]])
    labels = jnp.asarray([0])
    bank = jnp.asarray([[[3.0, 1.0, -2.0], [0.0, 0.0, 0.0]]])  # teachers sure and right, right, wrong
    used = {name: finetune.teachers_in_use(student, labels, bank, 1.0, name).tolist() for name in finetune.FILTERS}
    assert used == {"divergence": [1, 1, 0], "loss": [1, 1, 0], "all": [1, 1, 1]}
    assert finetune.selected_knowledge(bank, jnp.asarray([1.0, 1.0, 0.0])).tolist() == [[2.0, 0.0]]
    assert finetune.selected_knowledge(bank, jnp.zeros(3)).tolist() == [[0.0, 0.0]]


def test_how_a_short_last_batch_counts():
    assert objective.divisor("samples", 320, 256) == 320
    assert objective.divisor("official", 320, 256) == 512  # 0.625 of the mean per image


def test_ensemble_is_a_mean_of_logits():
    ones = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(objective.update_ensemble(objective.update_ensemble(ones, 1, 3 * ones), 2, 5 * ones), 3)
