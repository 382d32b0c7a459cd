"""The command line as a user types it: what a run leaves, kills, devices, the network of another run."""

import csv
import json
import signal

import numpy as np
import pytest

from pruning import deploy
from tests.common.toys import running
from tests.pruning import cli

PHASES = ("dense", "prepare", "search", "bank", "finetune")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, without a break, on one device."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    out, _ = cli.run(*cli.flags(folder))
    return folder, out


def test_what_a_run_leaves(finished):
    folder, out = finished
    assert all((folder / phase / "DONE").exists() for phase in PHASES)
    results = json.loads((folder / "finetune" / "results.json").read_text())
    assert {"dense_test_accuracy", "test_accuracy_before_finetuning", "test_accuracy", "times_faster_batch1"} <= set(
        results
    )
    assert {f"{phase}_minutes" for phase in PHASES} <= set(results)
    assert 0.5 < results["flops_kept_ekg"] <= 0.8
    assert results["flops_kept_ekg"] != results["flops_kept_macs"]
    assert "test_accuracy_before_finetuning" in out
    with (folder / "search" / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["gate"] == ""
    assert float(rows[-1]["flops_kept"]) == pytest.approx(results["flops_kept_ekg"])
    assert len(rows) - 1 == len([line for line in running.metrics(folder / "search") if line["kind"] == "train"])
    bank = np.load(folder / "bank" / "bank.npy", mmap_mode="r")
    assert bank.shape == (64, 4, 2)
    for figure in ("search/figures/search.png", "search/figures/widths.svg", "finetune/figures/accuracy.png"):
        assert (folder / figure).exists(), figure
    assert (folder / "slim" / "latency.md").read_text().startswith("| network |")


def test_slim_network_is_the_one_that_was_fine_tuned(finished):
    folder, _ = finished
    _, params, stats, description = deploy.load(folder / "slim")
    saved = running.state_on_disk(folder / "finetune")
    for name, tree in (("['params']", params), ("['model_state']['batch_stats']", stats)):
        for path, array in running.arrays(tree).items():
            np.testing.assert_array_equal(array, saved[name + path], err_msg=path)
    history = running.state_on_disk(folder / "search")
    keeps = history["['model_state']['search']['keeps']"]
    assert list(description.widths().values()) == keeps.tolist()


def results_but_for_time(folder):
    """Numbers of results.json that are no wall-clock times."""
    results = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in results.items() if not name.endswith("_minutes") and "faster" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["search", "finetune"])
def test_killed_run_resumes_bit_for_bit(finished, tmp_path, phase):
    folder = tmp_path / "run"
    process = cli.start(*cli.flags(folder))

    def reached():
        file = folder / phase / "metrics.jsonl"
        return file.exists() and len(running.metrics(folder / phase)) >= 2

    running.wait_until(reached, process)
    process.kill()
    running.finish(process, -signal.SIGKILL)
    assert not (folder / "finetune" / "DONE").exists()
    cli.run(*cli.flags(folder))
    for name in PHASES:
        a, b = finished[0] / name, folder / name
        assert running.metrics(a) == running.metrics(b)
        running.assert_same_arrays(running.state_on_disk(a), running.state_on_disk(b))
        assert results_but_for_time(a) == results_but_for_time(b)
    assert (folder / "search" / "history.csv").read_text() == (finished[0] / "search" / "history.csv").read_text()


@pytest.mark.slow
def test_eight_devices_equal_one(finished, tmp_path):
    cli.run(*cli.flags(tmp_path / "run"), devices=8)
    one, eight = finished[0], tmp_path / "run"
    gates = "['model_state']['search']['history_gate']"
    np.testing.assert_array_equal(*(running.state_on_disk(folder / "search")[gates] for folder in (one, eight)))
    for name, tolerance in (("dense", 1e-5), ("search", 1e-4), ("finetune", 1e-4)):
        running.assert_same_arrays(running.state_on_disk(one / name), running.state_on_disk(eight / name), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["l1", "bn_gamma"])
def test_baselines_prune_the_network_of_another_run(finished, tmp_path, file):
    cli.run(*cli.flags(tmp_path / "run", file, dense=finished[0]))
    results, theirs = (
        json.loads((folder / "finetune" / "results.json").read_text()) for folder in (tmp_path / "run", finished[0])
    )
    assert results["dense_test_accuracy"] == theirs["dense_test_accuracy"]
    assert not (tmp_path / "run" / "dense").exists()
    assert not (tmp_path / "run" / "bank").exists()
    assert results["flops_kept_ekg"] <= 0.8


@pytest.mark.slow
def test_analysis(finished):
    folder, _ = finished
    cli.run(*cli.flags(folder), "--mode=analyse")
    values = json.loads((folder / "analysis.json").read_text())
    for name in ("dense", "slim"):
        assert values[f"{name}_condition_number"] >= 0
        assert values[f"{name}_smallest_eigenvalue"] < values[f"{name}_largest_eigenvalue"]
        assert (folder / "figures" / f"surface_{name}.png").exists()
