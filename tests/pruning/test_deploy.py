"""A slim network that was saved, built again and exported; and the latency table."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from common import exported
from common.augment import normalize
from common.errors import UserError
from pruning import complexity, deploy, latency, predict, slim
from pruning.graph import narrow
from pruning.models.cifar_resnet import cifar_resnet
from tests.pruning import networks, reference
from tests.pruning.networks import jit, logits

GRAPH = cifar_resnet(8, 4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, description, slim variables) of a small ResNet, 0.4 of its channels left."""
    params, batch_stats = networks.variables(GRAPH, 12)
    kept = slim.keep_indices(GRAPH, networks.ranks(GRAPH), networks.keep(GRAPH, [0.4] * len(GRAPH.gates)))
    description = deploy.Description(
        architecture="resnet8",
        num_classes=4,
        image_channels=3,
        image_size=12,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        class_names=("a", "b", "c", "d"),
        kept={name: indices.tolist() for name, indices in kept.items()},
    )
    new, inherited = slim.slice_variables(GRAPH, params, batch_stats, kept)
    images = jnp.asarray(networks.formula("training images", 8, 12, 12, 3))
    new = new, slim.recalibrate_bn(narrow(GRAPH, description.widths()), new, inherited, [images])
    folder = tmp_path_factory.mktemp("run") / "slim"
    deploy.save(folder, description, *new)
    return folder, description, new


def test_the_file_says_what_the_network_is_and_costs(saved):
    folder, description, _ = saved
    stored = json.loads((folder / "slim.json").read_text())
    widths = {gate.name: len(description.kept[gate.name]) for gate in GRAPH.gates}
    assert stored["widths"] == widths
    for count in complexity.COUNTS:
        now, full = complexity.totals(GRAPH, 12, widths, count), complexity.totals(GRAPH, 12, None, count)
        assert stored["cost"][count]["flops"] == now.flops
        assert stored["cost"][count]["params_kept"] == pytest.approx(now.params / full.params)


def test_built_again_it_is_the_same_network(saved):
    folder, description, new = saved
    graph, params, batch_stats, found = deploy.load(folder)
    assert found == description
    assert graph == narrow(GRAPH, description.widths())
    x = jnp.asarray(networks.formula("images", 5, 12, 12, 3))
    np.testing.assert_allclose(logits(graph, params, batch_stats, x), logits(graph, *new, x), rtol=0, atol=1e-5)


def test_exported_it_takes_pixels_in_any_number(saved, tmp_path):
    folder, description, new = saved
    deploy.export(folder, tmp_path / "slim.npz")
    call, record = exported.load(tmp_path / "slim.npz")
    assert record["class_names"] == ["a", "b", "c", "d"]
    pictures = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), np.uint8)
    images = normalize(jnp.asarray(pictures), description.mean, description.std)
    expected = logits(narrow(GRAPH, description.widths()), *new, images)
    for count in (1, 3):
        (found,) = call(jnp.asarray(pictures[:count]))
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-5)


def _change(**fields):
    def change(folder):
        stored = json.loads((folder / "slim.json").read_text())
        (folder / "slim.json").write_text(json.dumps({**stored, **fields}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "slim.json").unlink(), r"holds no slim network \(there is no slim.json\)"),
        (lambda folder: (folder / "slim.json").write_text("{"), r"slim.json is damaged \(JSONDecodeError"),
        (lambda folder: (folder / "slim.json").write_text("{}"), r"slim.json is damaged \(KeyError: 'num_classes'"),
        (_change(architecture="resnet9"), r"describes no network .* 'resnet9' \(did you mean 'resnet8'"),
        (_change(kept={"conv": []}), r"describes no network .* width of gate conv is 0"),
        (_change(kept={"conv": [1, 2]}), r"slim.safetensors does not fit the network \(wrong:"),
        (_change(kept=3), r"slim.json is damaged \(AttributeError"),
        (_change(num_classes=0), r"slim.json is damaged \(ValueError: numbers below 1"),
        (_change(image_size="big"), r"slim.json is damaged \(ValueError"),
        (_change(mean=[0.5]), r"slim.json is damaged \(ValueError: .* one mean and std per channel"),
        (_change(num_classes=5), r"slim.safetensors does not fit the network \(wrong:"),
        (lambda folder: (folder / "slim.safetensors").unlink(), "slim.safetensors does not exist"),
        (lambda folder: (folder / "slim.safetensors").write_bytes(b"x"), "slim.safetensors is no weights file"),
    ],
)
def test_damaged_folders(saved, tmp_path, damage, message):
    deploy.save(tmp_path, saved[1], *saved[2])
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        deploy.load(tmp_path)


def test_a_folder_that_cannot_be_written(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        deploy.save(tmp_path / "file" / "slim", saved[1], *saved[2])


def test_the_description_cannot_be_changed(saved):
    with pytest.raises(dataclasses.FrozenInstanceError):
        saved[1].image_size = 3


@pytest.mark.slow
def test_command_line(saved, tmp_path):
    def run(*arguments, module="pruning.deploy"):
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)

    out = tmp_path / "slim.npz"
    done = run(f"--slim={saved[0]}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "uint8 pictures [n, 12, 12, 3] to logits of 4 classes" in done.stdout
    done = run(f"--slim={saved[0]}", "--images=nowhere", f"--out={tmp_path / 'a.csv'}", module="pruning.predict")
    assert (done.returncode, done.stderr) == (2, "Error: --images=nowhere: there is no such file or folder.\n")
    for arguments, message in (
        ((f"--slim={saved[0]}", f"--out={out}"), "exists already"),
        ((f"--slim={tmp_path}", f"--out={tmp_path / 'b.npz'}"), "holds no slim network"),
        ((f"--slim={saved[0]}", "--out=slim.zip"), "give --slim=RUN/slim and --out=FILE.npz"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_pictures_are_classified(saved, tmp_path):
    folder, description, new = saved
    pictures = np.random.default_rng(1).integers(0, 256, (3, 12, 12, 3), np.uint8)
    for place, picture in enumerate(pictures):
        PIL.Image.fromarray(picture).save(tmp_path / f"{place}.png")
    assert predict.predict(folder, tmp_path, tmp_path / "found.csv", batch_size=2) == 3
    images = normalize(jnp.asarray(pictures), description.mean, description.std)
    expected = jax.nn.softmax(logits(narrow(GRAPH, description.widths()), *new, images))
    rows = [line.split(",") for line in (tmp_path / "found.csv").read_text().splitlines()]
    assert rows[0] == ["image", "class", "probability"]
    for place, (row, probabilities) in enumerate(zip(rows[1:], expected, strict=True)):
        assert row[:2] == [str(tmp_path / f"{place}.png"), "abcd"[int(probabilities.argmax())]]
        assert float(row[2]) == pytest.approx(float(probabilities.max()), abs=1e-5)
    with pytest.raises(UserError, match="exists already"):
        predict.predict(folder, tmp_path, tmp_path / "found.csv")
    with pytest.raises(UserError, match="there is no such file or folder"):
        predict.predict(folder, tmp_path / "nowhere", tmp_path / "other.csv")


def test_networks_whose_time_is_taken(saved):
    _, description, new = saved
    kept = {name: np.asarray(indices) for name, indices in description.kept.items()}
    names = ("params", "batch_stats")
    dense, slim_variables = (dict(zip(names, trees, strict=True)) for trees in (networks.variables(GRAPH, 12), new))
    forms = latency.variants(GRAPH, dense, kept, slim_variables)
    assert list(forms) == ["dense", "masked", "slim"]
    x = jnp.asarray(networks.formula("images", 2, 12, 12, 3))
    found = {name: jit(form.call)(form.arguments, x) for name, form in forms.items()}
    np.testing.assert_allclose(found["dense"], logits(GRAPH, *dense.values(), x), rtol=1e-4, atol=1e-4)
    masked = reference.forward(
        narrow(GRAPH, description.widths()), *slim.slice_variables(GRAPH, *dense.values(), kept), x
    )
    np.testing.assert_allclose(found["masked"], masked, rtol=1e-4, atol=1e-4)
    expected = reference.forward(narrow(GRAPH, description.widths()), *new, x)
    np.testing.assert_allclose(found["slim"], expected, rtol=1e-4, atol=1e-4)


def test_latency_table():
    networks = {
        "long": latency.Variant(
            lambda a, x: jax.lax.fori_loop(0, 2000, lambda _, y: jnp.sin(y * a), x), jnp.float32(1)
        ),
        "short": latency.Variant(lambda a, x: x * a, jnp.float32(1)),
    }
    rows = latency.table(networks, (8, 8, 3), (1, 4), runs=3)
    assert [(row.network, row.batch_size) for row in rows] == [(name, size) for size in (1, 4) for name in networks]
    assert rows[0].times_faster == rows[2].times_faster == 1
    assert rows[3].times_faster == pytest.approx(rows[2].milliseconds / rows[3].milliseconds)
    assert rows[3].times_faster > 1
    text = latency.markdown(rows).splitlines()
    assert text[0] == "| network | 1 image | 4 images |"
    assert text[3].startswith("| short | ")
    assert text[3].endswith(f" {rows[3].milliseconds:.2f} ms ({rows[3].times_faster:.2f}x) |")


@pytest.mark.parametrize("bad", [{"runs": 0}, {"batch_sizes": ()}, {"batch_sizes": (4, 0)}])
def test_tables_that_cannot_be(bad):
    with pytest.raises(UserError, match="needs at least 1 run and 1 image"):
        latency.table({}, (8, 8, 3), **bad)
