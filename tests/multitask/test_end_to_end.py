"""The command line as a user types it: what a run leaves, kills, devices, compilations."""

import json
import re
import signal

import jax
import numpy as np
import pytest

from common import loop, pretrained
from multitask import experiment, handover
from tests.common.toys import running
from tests.multitask import cli

# Fifteen steps; pseudo-labels are drawn anew every four (64 images, batches of 16).
LONG = {"num_steps": 15, "eval_every_steps": 5, "save_every_steps": 3, "transfers": "()", "eval_batch_size": 32}


def test_a_run_without_a_break(tmp_path):
    """Pre-training and all target tasks: one test, so that only one worker runs them."""
    out, _ = cli.run(*cli.flags(tmp_path))
    check_what_it_leaves(tmp_path, out)
    check_teacher_is_another_network_than_the_student(tmp_path)
    check_exported_encoder_is_the_teacher(tmp_path)


def check_what_it_leaves(folder, out):
    lines = running.metrics(folder / "pretrain")
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 9))
    measured = [line for line in lines if line["kind"] == "evaluate"]
    assert [line["step"] for line in measured] == [4, 8]
    shares = [measured[-1][f"{name}_share"] for name in ("autoencoder", "rotation", "clustering")]
    assert sum(shares) == pytest.approx(1)
    assert {"cosine_autoencoder_rotation", "clustering_nmi_to_previous", "clustering_nmi_to_labels"} <= measured[
        -1
    ].keys()
    figures = {path.name for path in (folder / "pretrain" / "figures").iterdir()}
    assert {
        "training.png",
        "task_losses.png",
        "gradient_shares.png",
        "gradient_cosines.svg",
        "embedding.png",
    } <= figures
    results = json.loads((folder / "results.json").read_text())
    for name in ("probe_accuracy", "knn_accuracy", "finetune_accuracy_100", "finetune_accuracy_10"):
        assert 0 <= results[f"classification_{name}"] <= 1
    for name in ("zero_shot_nmi", "zero_shot_recall_at_1", "fine_tuned_pairwise_f1"):
        assert 0 <= results[f"clustering_{name}"] <= 1
    assert 0 <= results["detection_map_all"] <= 1
    assert re.search(r"^\| detection_map_all +\| [\d.e-]+ +\|$", out, re.MULTILINE)


def check_teacher_is_another_network_than_the_student(folder):
    state = running.state_on_disk(folder / "pretrain")
    teacher = {path: leaf for path, leaf in state.items() if path.startswith("['model_state']['teacher']")}
    assert any("'mean'" in path for path in teacher)
    different = 0
    for path, leaf in teacher.items():
        online = path.replace("['model_state']['teacher']['params']", "['params']")
        online = online.replace("['model_state']['teacher']['batch_stats']", "['model_state']['batch_stats']")
        different += not np.array_equal(leaf, state[online])
    assert different == len(teacher)


def check_exported_encoder_is_the_teacher(folder):
    weights = pretrained.read_weights(folder / "pretrain" / "encoder.safetensors")
    state = running.state_on_disk(folder / "pretrain")
    kernel = state["['model_state']['teacher']['params']['backbone']['layer1_conv']['kernel']"]
    np.testing.assert_array_equal(weights["params/layer1_conv/kernel"], kernel)
    assert "batch_stats/layer4_bn/var" in weights


TWO = {"tasks": "('rotation','clustering')", "rotation.num_views": 1}
WAYS = {
    "teacher": {"tasks": "('autoencoder','clustering','adversarial')", "clustering_task.feature_source": "teacher"},
    "memory": {**TWO, "tte.mode": "feature_ema", "tte.alpha": 0.6, "weighting.kind": "dwa"},
    "snapshots": {**TWO, "tte.mode": "task_snapshot", "tte.inner_steps": 2, "tte.order": "sequential"},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_killed_run_resumes_bit_for_bit(way, tmp_path):
    """Teacher, memory, pseudo-labels, critic, optimisers of snapshots, data order."""
    cli.run(*cli.flags(tmp_path / "whole", **LONG, **WAYS[way]))
    flags = cli.flags(tmp_path / "killed", **LONG, **WAYS[way])
    process = cli.start(*flags)
    file = tmp_path / "killed" / "pretrain" / "checkpoints" / "6"
    running.wait_until(file.exists, process)
    process.kill()
    running.finish(process, -signal.SIGKILL)
    assert not (tmp_path / "killed" / "DONE").exists()
    out, _ = cli.run(*flags)
    assert re.search(r"pretrain: resumed at step \d+ of 15\.", out)
    running.assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_scratch_and_labels(tmp_path):
    """The two baselines that are no pretext task: no pre-training at all, and with labels."""
    short = {"transfers": "('classification',)", "classification.finetune.fractions": "()"}
    cli.run(*cli.flags(tmp_path / "scratch", tasks="()", **short))
    assert not (tmp_path / "scratch" / "pretrain").exists()
    assert json.loads((tmp_path / "scratch" / "results.json").read_text()).keys() >= {"classification_probe_accuracy"}
    cli.run(*cli.flags(tmp_path / "labels", tasks="('supervised',)", **short))
    assert "supervised_accuracy" in running.metrics(tmp_path / "labels" / "pretrain")[0]


@pytest.mark.slow
def test_eight_devices_equal_one(tmp_path):
    """By SGD: Adam turns rounding noise into full steps. After one step: in the third, ReLUs at their kinks begin to go
    another way for a last bit. Its pseudo-labels come from a clustering over all devices."""
    sgd = {"optimizer.name": "sgd", "num_steps": 2, "eval_every_steps": 2, "save_every_steps": 1}
    for devices in (1, 8):
        cli.run(*cli.flags(tmp_path / str(devices), **{**LONG, **sgd}), devices=devices)
    one, eight = (running.state_on_disk(tmp_path / name / "pretrain", 1) for name in ("1", "8"))
    for path in [path for path in one if "'labels'" in path or "'previous'" in path]:
        np.testing.assert_array_equal(one[path], eight[path], err_msg=path)
    running.assert_same_arrays(one, eight, 2e-5)
    for a, b in zip(*(running.metrics(tmp_path / name / "pretrain") for name in ("1", "8")), strict=True):
        losses = [[line[name] for name in sorted(line) if "loss" in name] for line in (a, b)]
        np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_nothing_is_compiled_anew_by_new_pseudo_labels(tmp_path, compiled):
    config = cli.config(tasks=("clustering",), transfers=(), num_steps=9, eval_every_steps=9, save_every_steps=9)
    outcome = loop.fit(experiment.build(config, {}), config, tmp_path)
    assert compiled().count("jit(train_step)") == 1
    assert compiled().count("jit(lloyd)") == 1
    rows = outcome.state.model_state["tasks"]["clustering"]
    assert np.any(np.asarray(rows["labels"]) != np.asarray(rows["previous"]))  # three clusterings in nine steps
    assert int(outcome.state.opt_state[0].count) == 9


def test_fresh_head_has_fresh_optimiser_slots():
    from multitask import relabelling, train

    config = cli.config(tasks=("rotation", "clustering"))
    built = experiment.build(config, {})
    recipe = built.train_step.args[0]
    state = jax.jit(built.init)(built.data, jax.random.key(0))
    state = state.replace(opt_state=jax.tree.map(lambda leaf: leaf + 1, state.opt_state))
    pooled = np.zeros((1, 8), np.float32)
    new = relabelling.restart_head(state, recipe.network, 1, jax.numpy.asarray(pooled), jax.random.key(9))
    moments = new.opt_state[0].mu["heads"]
    assert not np.any(moments["clustering"]["Dense_0"]["kernel"])
    assert np.all(moments["rotation"]["Dense_0"]["kernel"] == 1)
    assert int(new.opt_state[0].count) == 1  # the rate's schedule goes on
    before, after = (s.params["heads"]["clustering"]["Dense_0"]["kernel"] for s in (state, new))
    assert np.all(np.asarray(before) != np.asarray(after))
    assert train.averaged(new.params, new.model_state["batch_stats"]).keys() == {"params", "batch_stats"}
    assert handover.pretrained_variables(new, "teacher").keys() == {"params", "batch_stats"}
