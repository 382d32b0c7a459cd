"""Checkpoints of the official code: read without PyTorch, every name accounted for, written back the same."""

import collections
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from fewshot import convert, weights
from fewshot.models import Conv4
from fewshot.resnet12 import ResNet12
from tests.common.toys import running
from tests.fewshot import cli, official, trajectory
from tests.fewshot.test_resnet12 import golden_weights

RATES = "inner_loop_optimizer.names_learning_rates_dict."


def named(data, source, target=""):
    """The arrays of a golden file under `source`, by the names of the official state dict."""
    return {target + key.removeprefix(source): data[key] for key in data if key.startswith(source)}


def state_dict(name: str) -> dict[str, np.ndarray]:
    """The official system's state dict with the weights of a golden file."""
    data = official.golden(name)
    state = named(data, "w/", "classifier.") | named(data, "G/", "gamma_generator.")
    rates = named(data, "inner_lr/", RATES) if "inner_lr/layer_dict.linear.bias" in data else {}
    state |= {RATES + key.removeprefix(RATES).replace(".", "-"): array for key, array in rates.items()}
    return with_moments(state)


def with_moments(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The official system also holds running moments of each norm layer, which it never uses."""
    norms = [name.removesuffix(".bias") for name in state if name.endswith("norm_layer.bias")]
    zeros = {f"{norm}.{kind}": np.zeros_like(state[f"{norm}.bias"]) for norm in norms for kind in weights.RUNNING}
    return state | zeros


def shapes_of(params: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.float32), params)


def network_shapes(network: Conv4 | ResNet12, size=28, channels=3) -> dict[str, Any]:
    images = jax.ShapeDtypeStruct((1, size, size, channels), np.float32)
    return {"net": jax.eval_shape(lambda x: network.init(jax.random.key(0), x)["params"], images)}


def assert_same(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    found, wanted = trajectory.flat(ours), trajectory.flat(expected)
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def ours_of(name: str) -> dict[str, Any]:
    """The golden file's parameters in our layout, by the map of `tests/fewshot/official.py`, written independently."""
    params = official.parameters(official.golden(name))
    if not any(key.startswith("inner_lr/") for key in official.golden(name)):
        del params["rates"]
    return params


# --- reading --------------------------------------------------------------------------------------------------------


def save_safetensors(path: Path, state: dict[str, np.ndarray]) -> Path:
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)
    return path


def save_torch(path: Path, state: dict[str, np.ndarray], legacy: bool = False) -> Path:
    """As the official code saves: the experiment's bookkeeping beside the state dict, numpy scalars and all."""
    torch = pytest.importorskip("torch")
    network = collections.OrderedDict((name, torch.tensor(array)) for name, array in state.items())
    statistics = {"val_accuracy_mean": [np.float64(0.4), np.float64(0.5)]}
    saved = {"best_val_acc": np.float64(0.5), "current_iter": 1000, "network": network} | {
        "best_epoch": 1,
        "per_epoch_statistics": statistics,
    }
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    return path


FORMS = {
    "safetensors": save_safetensors,
    "torch": save_torch,
    "torch, legacy": lambda path, state: save_torch(path, state, legacy=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_imported_conv4_gives_the_official_logits(form, tmp_path):
    data = official.golden("conv4_forward")
    path = FORMS[form](tmp_path / "train_model_latest", state_dict("conv4_forward"))
    network = Conv4(5, 8)
    params = weights.read(path, network_shapes(network, size=32))
    logits = jax.jit(network.apply)({"params": params["net"]}, official.images(data["x"])).logits
    assert official.error(logits, data["logits"]) < 1e-5


@pytest.mark.parametrize("name", ["maml_trajectory", "cxgrad_trajectory", "mamlpp_trajectory"])
def test_network_generator_rates_and_norms_per_step_are_read_and_written_back(name, tmp_path):
    state, expected = state_dict(name), ours_of(name)
    params = weights.read(save_safetensors(tmp_path / "model", state), shapes_of(expected))
    assert_same(params, expected)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert_same(weights.to_official(params), state)


def test_resnet12_is_read_and_written_back(tmp_path):
    state = with_moments({f"classifier.{name}": array for name, array in golden_weights().items()})
    params = weights.read(save_safetensors(tmp_path / "model", state), network_shapes(ResNet12(5), size=24))
    expected = {official.path(name): official.layout(official.path(name), w) for name, w in golden_weights().items()}
    assert_same(params["net"], official.nested(expected))
    assert_same(weights.to_official(params), state)


def test_layer_norm_has_a_shift_alone(tmp_path):
    template = network_shapes(Conv4(5, 8, norm="layer"))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), template)
    state = weights.to_official(params)
    assert state["classifier.layer_dict.conv1.norm_layer.bias"].shape == (8, 14, 14)
    assert (state["classifier.layer_dict.conv1.norm_layer.weight"] == 1).all()
    assert_same(weights.read(save_safetensors(tmp_path / "model", state), template), params)
    state["classifier.layer_dict.conv1.norm_layer.weight"] *= 2
    with pytest.raises(UserError, match=r"gain classifier.layer_dict.conv1.norm_layer.weight is not 1"):
        weights.read(save_safetensors(tmp_path / "other", state), template)


def test_running_moments_per_step_are_written(tmp_path):
    params = ours_of("mamlpp_trajectory")
    random = np.random.default_rng(0)
    running = {
        f"norm{i}": {kind: random.standard_normal((5, 8)).astype(np.float32) for kind in ("mean", "variance")}
        for i in range(4)
    }
    state = weights.to_official(params, running)
    norm = "classifier.layer_dict.conv2.norm_layer"
    np.testing.assert_array_equal(state[f"{norm}.running_mean"], running["norm2"]["mean"])
    np.testing.assert_array_equal(state[f"{norm}.running_var"], running["norm2"]["variance"])


@pytest.mark.parametrize(
    "prefix", ["", "classifier.", "network.classifier.", "module.classifier.", "classifier.module."]
)
def test_common_wrappers_are_taken_off(prefix, tmp_path):
    state = {prefix + name: array for name, array in named(official.golden("conv4_forward"), "w/").items()}
    params = weights.read(save_safetensors(tmp_path / "model", state), network_shapes(Conv4(5, 8), size=32))
    expected = official.nested(official.group(official.golden("conv4_forward"), "w/", (2, 2)))
    assert_same(params["net"], expected)


# --- what does not fit ----------------------------------------------------------------------------------------------

CONV2, BIAS = "classifier.layer_dict.conv2.conv.weight", "classifier.layer_dict.linear.bias"


def without(state, name):
    return {key: array for key, array in state.items() if key != name}


BAD = {
    "missing": (lambda s: without(s, CONV2), rf"1 missing: {CONV2}"),
    "extra": (lambda s: s | {"classifier.mask": np.zeros(3, np.float32)}, "1 unexpected: classifier.mask"),
    "shape": (lambda s: s | {BIAS: np.zeros(6, np.float32)}, rf"{BIAS} has shape \[6\] instead of \[5\]"),
    "not finite": (lambda s: s | {BIAS: np.full(5, np.nan, np.float32)}, rf"{BIAS} holds values that are not finite"),
    "width": (
        lambda s: s | {"classifier.layer_dict.conv0.conv.weight": np.zeros((48, 3, 3, 3), np.float32)},
        r"48 filters \(layer_dict.conv0.conv.weight .*config.filters is 8: set --config.filters=48",
    ),
    "other network": (
        lambda s: {f"classifier.{name}": array for name, array in golden_weights().items()},
        "another network .*--config.network=resnet12",
    ),
    "generator": (
        lambda s: s | {"gamma_generator.0.weight": np.zeros((10, 10), np.float32)},
        "holds CxGrad's scale generator .*config.method=cxgrad",
    ),
    "rates": (
        lambda s: s | {RATES + "layer_dict-linear-bias": np.zeros(6, np.float32)},
        "holds learned inner rates .*config.learned_inner_rates=True",
    ),
    "twice": (
        lambda s: s | {BIAS.removeprefix("classifier."): np.zeros(5, np.float32)},
        "holds layer_dict.linear.bias twice",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_weights_that_do_not_fit_are_refused_in_one_sentence(case, tmp_path):
    change, message = BAD[case]
    path = save_safetensors(tmp_path / "model", change(state_dict("conv4_forward")))
    with pytest.raises(UserError, match=message) as caught:
        weights.read(path, network_shapes(Conv4(5, 8), size=32))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_generator_that_is_asked_for_and_not_there(tmp_path):
    path = save_safetensors(tmp_path / "model", state_dict("maml_trajectory"))
    with pytest.raises(UserError, match=r"lacks CxGrad's scale generator .*config.method=cxgrad"):
        weights.read(path, shapes_of(ours_of("cxgrad_trajectory")))


def test_learned_length_scale_has_no_place(tmp_path):
    params = ours_of("maml_trajectory") | {"sigma": {"log_sigma": np.zeros((), np.float32)}}
    path = save_safetensors(tmp_path / "model", state_dict("maml_trajectory"))
    with pytest.raises(UserError, match=r"cannot be read: .* --config.propagation.sigma=fixed"):
        weights.read(path, shapes_of(params))
    with pytest.raises(UserError, match="cannot be exported"):
        weights.to_official(params)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x02 not a pickle", b"version https://git-lfs"])
def test_file_that_is_no_checkpoint(content, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"model.pt") as caught:
        weights.read(tmp_path / "model.pt", network_shapes(Conv4(5, 8)))
    assert "\n" not in str(caught.value)


# --- from the command line ------------------------------------------------------------------------------------------


def test_export_then_start_from_the_file_without_training(finished, tmp_path, capsys, monkeypatch, little_optimization):
    file, best = tmp_path / "model.safetensors", running.best(finished.folder)[0]
    flags = [f"--workdir={finished.folder}", f"--out={file}"]
    command = [sys.executable, "-m", "fewshot.convert", *flags]
    done = subprocess.run(command, cwd=cli.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Step {best} of {finished.folder} written to {file}.\n"
    names = load_file(file).keys()
    assert {"gamma_generator.2.weight", "classifier.layer_dict.conv3.norm_layer.running_var"} <= names
    assert len(names) == 4 * 5 + 2 + 4

    monkeypatch.setattr(sys, "argv", ["fewshot.convert", *flags])
    assert convert.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "exists already" in error

    fields = {**finished.fields, "num_steps": 0, "init_from": str(file)}
    outcome = cli.train(cli.config("cxgrad", **fields), tmp_path / "run")
    params = {path: array for path, array in running.state_on_disk(finished.folder, best).items() if "params" in path}
    imported = {path: array for path, array in running.state_on_disk(tmp_path / "run").items() if "params" in path}
    running.assert_same_arrays(params, imported)
    theirs = json.loads((finished.folder / "results.json").read_text())
    assert outcome.results["test_best_single_accuracy"] == theirs["test_best_single_accuracy"]
    assert [line["kind"] for line in running.metrics(tmp_path / "run")] == ["evaluate"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"folder": "nowhere"}, "there is no run in it"),
        ({"out": "model.pt"}, "must end in .safetensors"),
        ({"step": 7}, "no checkpoint of step 7; its steps: "),
    ],
)
def test_export_that_cannot_be(flags, message, finished, tmp_path):
    folder = tmp_path / flags["folder"] if "folder" in flags else finished.folder
    with pytest.raises(UserError, match=message):
        convert.export(folder, tmp_path / flags.get("out", "model.safetensors"), flags.get("step", -1))
    assert not any(tmp_path.iterdir())
