"""The mode `analyse`: its numbers against the run's own, what it leaves, and what each number means."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.errors import UserError
from fewshot import adaptation, analysis, analysis_report, experiment, maml, maml_pp, report, similarity
from fewshot.adaptation import InnerLoop, Task
from fewshot.convolution import CONVOLUTIONS
from fewshot.label_propagation import Propagation
from fewshot.models import Conv4
from fewshot.train import Recipe
from tests.common.toys import running
from tests.fewshot import cli

# --- a finished run from the command line ---------------------------------------------------------------------------


def files(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_analysis_of_a_finished_run(finished, tmp_path, monkeypatch, little_optimization):
    for name, value in cli.LOG_COMPILES.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    before = files(folder)
    out, error = cli.run("cxgrad", folder, "--mode=analyse", **finished.fields)
    assert cli.compiled(error)["evaluate"] == 1
    assert "accuracy, head alone adapted" in out

    found = json.loads((folder / "analysis" / "analysis.json").read_text())
    assert (found["episodes"], found["inner_steps"]) == (6, 2)
    assert found["checkpoint"] == running.best(folder)[0]
    results = json.loads((folder / "results.json").read_text())
    assert found["accuracy"]["all"]["mean"][2] == pytest.approx(results["test_best_single_accuracy"], abs=1e-6)
    assert found["accuracy"]["all"]["ci95"][2] == pytest.approx(results["test_best_single_ci95_per_episode"], abs=1e-6)
    curves = [found[quantity].values() for quantity in ("accuracy", "loss", "biased", "unbiased", "context")]
    assert {len(values["mean"]) for curve in curves for values in curve} == {11}
    starts = {name: values["mean"][0] for name, values in found["accuracy"].items()}
    assert starts == dict.fromkeys(("all", "head", "backbone"), starts["all"])
    assert found["biased"].keys() == {"block0", "block1", "block2", "block3", "logits"}
    assert all(values["mean"][0] == pytest.approx(1, abs=1e-5) for values in found["unbiased"].values())
    assert found["context"]["norm"]["mean"][0] > 0
    assert np.asarray(found["factors"]["gamma"]["mean"]).shape == (10, 4)

    norms = json.loads((folder / "figures" / "gradient_norms.json").read_text())
    for name, steps in norms.items():
        np.testing.assert_allclose(found["gradient_norm"][name]["mean"][:2], steps, rtol=1e-4)
        assert len(found["gradient_norm"][name]["mean"]) == 10
    pictures = {file.stem for file in (folder / "analysis").glob("*.png")}
    assert pictures == {
        *("accuracy", "loss", "gradient_norms", "similarity_biased", "similarity_unbiased"),
        *("scale_factors", "context_norm"),
    }
    after = files(folder)
    assert {file: after[file] for file in before if file != folder} == {f: t for f, t in before.items() if f != folder}


@pytest.mark.slow
def test_another_number_of_episodes_is_another_analysis_and_leaves_the_first_alone(
    finished, tmp_path, little_optimization
):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "analysis").mkdir()
    (folder / "analysis" / "analysis.json").write_text("of other episodes")
    for _ in range(2):
        experiment.analyse(cli.config("cxgrad", **finished.fields, eval_analysis_episodes=5), folder)
    assert (folder / "analysis" / "analysis.json").read_text() == "of other episodes"
    found = json.loads((folder / "analysis-2" / "analysis.json").read_text())
    assert (found["episodes"], found["transductive"]) == (5, False)
    assert not (folder / "analysis-3").exists()


def test_analysis_of_what_is_no_run(finished, tmp_path):
    with pytest.raises(UserError, match=r"There is no run in .*nowhere; train first"):
        experiment.analyse(cli.config("cxgrad"), tmp_path / "nowhere")
    with pytest.raises(UserError, match="has another config"):
        experiment.analyse(cli.config("cxgrad", **finished.fields | {"ways": 4}), finished.folder)
    with pytest.raises(UserError, match=r"config.eval_analysis_episodes is 1, but must be at least 2"):
        experiment.analyse(cli.config("cxgrad", **finished.fields, eval_analysis_episodes=1), finished.folder)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"No checkpoint has been evaluated yet in .*; train first"):
        analysis_report.best_parameters(tmp_path)


# --- what is measured -----------------------------------------------------------------------------------------------

NETWORK = Conv4(3, 4, conv=CONVOLUTIONS["patches"])


def make_recipe(inner: InnerLoop, network: Conv4 = NETWORK, learned_rates: bool = False) -> Recipe:
    return Recipe(network, inner, optax.sgd(0.1), 1, None, None, learned_rates=learned_rates)


def make_task() -> Task:
    random = np.random.default_rng(0)
    images = [jnp.asarray(random.random((n, 16, 16, 1), np.float32)) for n in (3, 12)]
    return Task(images[0], jnp.arange(3), images[1], jnp.repeat(jnp.arange(3), 4))


@functools.cache
def make_params(network: Conv4 = NETWORK) -> dict:
    return {"net": jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"]}


@functools.cache
def analysed():
    spec = InnerLoop("maml", 2, 0.1, batch_norm="support_stats")
    program = jax.jit(lambda params, task: analysis.analyse_task(make_recipe(spec), params, task))
    return program(make_params(), make_task())


@pytest.mark.parametrize(
    ("adapted", "steps"),
    [("all", 7), pytest.param("head", 2, marks=pytest.mark.slow), pytest.param("backbone", 2, marks=pytest.mark.slow)],
)
def test_curves_are_those_of_the_adapted_networks(adapted, steps, little_optimization):
    params, task = make_params(), make_task()

    def direct(params, task):
        """Loss and features after a few steps, by `task_loss` and `adapt`."""
        own = InnerLoop("maml", steps, 0.1, adapted=adapted, batch_norm="support_stats", first_order=True)
        loss, _ = adaptation.task_loss(own, NETWORK.apply, params, task)
        after = adaptation.adapt(own, NETWORK.apply, params, task.support_images, task.support_labels)
        before = maml.split_parameters(params["net"], adapted)
        features = [
            adaptation.predict(own, NETWORK.apply, theta, omega, task.query_images, task.support_images, 0).features
            for theta, omega in (before, (after.theta, after.omega))
        ]
        return loss, features

    found = analysed()
    loss, features = jax.jit(direct)(params, task)
    np.testing.assert_allclose(found["loss"][adapted][steps], loss, rtol=1e-4)
    if adapted == "all":
        before, after = (similarity.gram(each) for each in features)
        for form, cka in analysis.SIMILARITIES.items():
            np.testing.assert_allclose(found[form]["block3"][steps], cka(before, after), atol=1e-4)
    assert found["accuracy"]["all"].shape == (11,)
    assert "factors" not in found


def program_of(kind):
    """(program, its arguments): the analysis of a run with this transduction."""
    spec = InnerLoop("maml", 1, 0.1, transduction=kind, propagation=Propagation(neighbours=4))
    arguments = make_params() | {"sigma": {"log_sigma": jnp.zeros(())}}, make_task()
    return (lambda params, task: analysis.analyse_task(make_recipe(spec), params, task)), arguments


@pytest.mark.parametrize("kind", ["off", "tapl"])
def test_query_images_are_given_to_every_adaptation_of_a_transductive_run(kind, monkeypatch):
    given, original = [], adaptation.adapt

    def adapt(*arguments, **named):
        given.append("query_images" in named)
        return original(*arguments, **named)

    monkeypatch.setattr(adaptation, "adapt", adapt)
    program, arguments = program_of(kind)
    jax.eval_shape(program, *arguments)
    assert given == [kind == "tapl"] * 3


def test_figures_say_which_run_is_transductive():
    assert report.titled(cli.config("maml")) == "maml on glyphs"
    crossed = cli.config("maml", transduction="propagation", eval_dataset="digits")
    assert report.titled(crossed) == "maml (transductive) on digits"


@pytest.mark.slow
def test_query_images_change_what_a_transductive_run_adapts_to(little_optimization):
    def run(kind):
        program, arguments = program_of(kind)
        return jax.jit(program)(*arguments)

    inductive, transductive = run("off"), run("tapl")
    assert jax.tree.structure(inductive) == jax.tree.structure(transductive)
    for name in ("all", "head", "backbone"):
        assert inductive["loss"][name][0] == transductive["loss"][name][0]
        assert inductive["loss"][name][1] != transductive["loss"][name][1]


def test_learned_steps_are_not_prolonged_and_untrained_rates_not_made_up():
    params = make_params()
    theta, _ = maml.split_parameters(params["net"], "head")
    learned = params | {"rates": maml_pp.init_rates(theta, 3, 0.1)}
    recipe = make_recipe(InnerLoop("maml", 3, 0.1, adapted="head"), learned_rates=True)
    found = analysis.variants(recipe, learned)
    assert {name: (spec.adapted, spec.num_steps) for name, spec in found.items()} == {
        "all": ("head", 3),
        "head": ("head", 3),
    }
    per_step = Conv4(3, 4, norm_steps=3)
    spec = InnerLoop("cxgrad", 3, 0.1)
    found = analysis.variants(make_recipe(spec, per_step), params)  # whose names are the same
    assert {spec.num_steps for spec in found.values()} == {3}
    assert {name: spec.method for name, spec in found.items()} == {
        "all": "cxgrad",
        "head": "maml",
        "backbone": "cxgrad",
    }
    prolonged = analysis.variants(make_recipe(InnerLoop("maml", 12, 0.1)), params)
    assert {spec.num_steps for spec in prolonged.values()} == {12}


def test_similarity_of_features_that_do_not_vary_is_no_number():
    values = {"biased": {"block0": np.array([[1.0, np.nan], [0.5, np.nan]], np.float32)}}
    summary = analysis.summarize(values)["biased"]["block0"]
    assert summary["mean"] == [0.75, None]
    assert summary["ci95"][0] == pytest.approx(1.96 * 0.25)
    assert json.loads(json.dumps(summary, allow_nan=False))["mean"][1] is None
