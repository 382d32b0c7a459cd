"""Checkpoints: what is kept, what is refused, and what happens to damaged ones."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.checkpoint import Checkpoints
from common.errors import UserError
from common.experiment import TrainState
from tests.common.toys import running
from tests.common.toys.fixtures import compilation_cache  # noqa: F401


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints", keep_best=2)
    yield opened
    opened.close()


def tree(value: float, size: int = 4) -> TrainState:
    params = {"b": {"kernel": jnp.full((size, 2), float(value))}, "a": jnp.arange(3.0) * value}
    return TrainState(jnp.int32(value), params, {"m": (jnp.zeros(2), jnp.int32(1))}, {"key": jax.random.key(3)})


def fill(checkpoints, steps):
    for step in steps:
        checkpoints.save(step, tree(step), {"note": step})
    checkpoints.wait()


def damage(folder, how):
    """Make the arrays of a checkpoint unreadable."""
    if how == "no meta":
        shutil.rmtree(folder / "meta")
        return
    if how in ("", "7", "{}"):  # the file of the metric
        (folder / "metrics" / "metrics").write_text(how)
        return
    files = [file for file in (folder / "state").rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if how == "truncated" else b"\x7f" * len(content))


def test_what_was_saved_comes_back_with_its_record(checkpoints):
    fill(checkpoints, [3])
    step, restored, meta = checkpoints.restore_latest(tree(0))
    assert (step, meta) == (3, {"note": 3})
    assert jax.tree.structure(restored) == jax.tree.structure(tree(3))
    running.assert_same_arrays(running.arrays(restored), running.arrays(tree(3)))
    assert checkpoints.restore_as_saved(3)["params"]["a"].tolist() == [0.0, 3.0, 6.0]


def test_nothing_saved(tmp_path, checkpoints):
    assert checkpoints.restore_latest(tree(0)) is None
    assert Checkpoints(tmp_path / "absent", read_only=True).restore_latest(tree(0)) is None
    assert not (tmp_path / "absent").exists()


def test_latest_two_and_best_two_are_kept(checkpoints):
    for step, value in [(1, 5.0), (2, 9.0), (3, None), (4, 9.0), (5, 9.0), (6, 1.0), (7, None), (8, 0.0)]:
        checkpoints.save(step, tree(step), {}, best=value)
    checkpoints.wait()
    assert checkpoints.best_steps(2) == [5, 4]  # of equals the later, also against step 2
    assert checkpoints.steps() == [4, 5, 7, 8]
    assert checkpoints.best_steps(9) == [5, 4, 8]


def test_best_are_kept_over_sessions(tmp_path):
    for step, value in [(1, -1.0), (2, -7.0), (3, -2.0), (4, -9.0), (5, -8.0)]:
        opened = Checkpoints(tmp_path, keep_best=2)
        opened.save(step, tree(step), {}, best=value)
        opened.close()
    opened = Checkpoints(tmp_path, keep_best=2)
    assert opened.best_steps(2) == [1, 3]
    assert opened.steps() == [1, 3, 4, 5]
    opened.close()


def test_a_step_saved_again_is_replaced(checkpoints):
    fill(checkpoints, [4])
    checkpoints.save(4, tree(5), {"note": "again"}, best=1.0)
    checkpoints.wait()
    step, restored, meta = checkpoints.restore_latest(tree(0))
    assert (step, int(restored.step), meta) == (4, 5, {"note": "again"})
    assert checkpoints.best_steps(1) == [4]
    assert not list((checkpoints.folder / "replaced").glob("*"))


@pytest.mark.parametrize("written", [False, True])
def test_a_step_saved_again_is_not_lost_if_that_is_cut_short(written, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    opened = Checkpoints(tmp_path)
    fill(opened, [4])
    with monkeypatch.context() as patch:
        patch.setattr(*((opened, "_settle_replaced") if written else (opened.manager, "save")), interrupt)
        with pytest.raises(KeyboardInterrupt):
            opened.save(4, tree(5), {"note": "again"})
    opened.close()
    opened = Checkpoints(tmp_path)
    assert int(opened.restore_latest(tree(0))[1].step) == (5 if written else 4)
    assert not list((tmp_path / "replaced").glob("*"))
    opened.close()


@pytest.mark.parametrize("how", ["truncated", "garbage", "no meta", "", "7", "{}"])
def test_damaged_latest_is_set_aside_with_a_warning(how, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    opened = Checkpoints(folder)
    for step in (10, 20):
        opened.save(step, tree(step), {}, best=1.0)
    opened.close()
    damage(folder / "20", how)
    reader = Checkpoints(folder, read_only=True)
    assert reader.restore_latest(tree(0))[0] == 10
    reader.close()
    assert (folder / "20").exists()
    capsys.readouterr()
    opened = Checkpoints(folder)
    assert opened.restore_latest(tree(0))[0] == 10
    warning = capsys.readouterr().err
    assert warning.startswith(f"Warning: the checkpoint {folder / '20'} cannot be read")
    assert warning.count("\n") == 1
    assert (folder / "damaged" / "20").is_dir()
    assert opened.steps() == [10]
    fill(opened, [20])
    assert opened.restore_latest(tree(0))[0] == 20
    opened.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax, of reads that it abandons
def test_no_flipped_bit_is_taken_for_the_truth(tmp_path, checkpoints):
    """Most flips give other numbers without any error from the storage, so every leaf has a checksum."""
    fill(checkpoints, [5])
    like, random, refused = tree(5), np.random.default_rng(0), 0
    files = sorted(file for file in (checkpoints.folder / "5" / "state").glob("d/*") if file.is_file())
    for _ in range(20):
        file = files[random.integers(len(files))]
        content = file.read_bytes()
        changed = bytearray(content)
        changed[random.integers(len(changed))] ^= 1 << random.integers(8)
        file.write_bytes(changed)
        for read in (lambda: checkpoints.restore(5, like)[0], lambda: checkpoints.restore_as_saved(5)["params"]):
            try:
                found = read()
            except (UserError, ValueError, OSError):
                refused += 1
            else:
                expected = like if isinstance(found, TrainState) else like.params
                running.assert_same_arrays(running.arrays(found), running.arrays(expected))
        file.write_bytes(content)
    assert refused > 0
    gc.collect()  # what abandoned reads left behind complains here, and in no later test


def test_second_damaged_one_of_a_step_gets_another_name(tmp_path):
    opened = Checkpoints(tmp_path)
    for _ in range(2):
        fill(opened, [10, 20])
        damage(tmp_path / "20", "garbage")
        opened.manager.reload()
        assert opened.restore_latest(tree(0))[0] == 10
    opened.close()
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["20", "20-2"]


def test_all_damaged_stays_an_error_until_mended(tmp_path):
    opened = Checkpoints(tmp_path)
    fill(opened, [10, 20])
    opened.close()
    shutil.copytree(tmp_path / "10", tmp_path.parent / "good")
    for step in ("10", "20"):
        damage(tmp_path / step, "truncated")
    for _ in range(2):  # the second time there is nothing left beside `damaged`
        opened = Checkpoints(tmp_path)
        with pytest.raises(UserError, match=r"None of the checkpoints in .* copy a good one back, or start anew"):
            opened.restore_latest(tree(0))
        opened.close()
    shutil.copytree(tmp_path.parent / "good", tmp_path / "10")
    opened = Checkpoints(tmp_path)
    assert opened.restore_latest(tree(0))[0] == 10
    opened.close()


def test_half_written_folder_is_ignored(tmp_path):
    opened = Checkpoints(tmp_path)
    fill(opened, [10])
    opened.close()
    shutil.copytree(tmp_path / "10", tmp_path / "20.orbax-checkpoint-tmp")
    shutil.rmtree(tmp_path / "20.orbax-checkpoint-tmp" / "meta")
    reader = Checkpoints(tmp_path, read_only=True)  # the writer may be alive
    assert reader.restore_latest(tree(0))[0] == 10
    reader.close()
    assert (tmp_path / "20.orbax-checkpoint-tmp").exists()
    opened = Checkpoints(tmp_path)
    assert opened.restore_latest(tree(0))[0] == 10
    fill(opened, [20])
    assert opened.restore_latest(tree(0))[0] == 20
    opened.close()


def with_params(**changes):
    """A state with some parameters changed; None takes one away."""
    params = {name: leaf for name, leaf in (tree(0).params | changes).items() if leaf is not None}
    return tree(0).replace(params=params)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda: with_params(a=jnp.zeros(3, jnp.bfloat16)), r"\['a'\] is float32\[3\] there and bfloat16\[3\] here"),
        (lambda: with_params(a=jnp.zeros(4)), r"\.params\['a'\] is float32\[3\] there and float32\[4\] here"),
        (lambda: with_params(a=None), r"\.params\['a'\] is float32\[3\] there and absent here"),
        (lambda: with_params(c=jnp.zeros(1)), r"\.params\['c'\] is absent there and float32\[1\] here"),
        (
            lambda: tree(0).replace(opt_state={"m": (jnp.zeros(2),)}),
            r"\.opt_state\['m'\]\[1\] is int32\[\] there and absent",
        ),
    ],
)
def test_other_leaves_are_refused_by_name(changed, message, checkpoints):
    fill(checkpoints, [1])
    with pytest.raises(UserError, match=message):
        checkpoints.restore_latest(changed())
    assert checkpoints.steps() == [1]


def test_params_alone_fit_whatever_the_optimizer_was(checkpoints):
    fill(checkpoints, [5])
    params = checkpoints.restore_latest_params(tree(0).replace(opt_state={"other": jnp.zeros(7)}))
    running.assert_same_arrays(running.arrays(params), running.arrays(tree(5).params))
    with pytest.raises(
        UserError, match=r"\.params\['b'\]\['kernel'\] is float32\[4, 2\] there and float32\[9, 2\] here"
    ):
        checkpoints.restore_latest_params(tree(0, size=9))


def test_damaged_state_of_a_finished_phase_is_a_sentence(checkpoints):
    fill(checkpoints, [5])
    damage(checkpoints.folder / "5", "garbage")
    with pytest.raises(UserError, match=r"checkpoints/5 cannot be read .* copy a good one there, or remove .*DONE"):
        checkpoints.restore_as_saved(5)


def test_saving_while_the_state_is_donated(tmp_path):
    """Each checkpoint holds the state of its own step, though the next steps reuse its memory at once."""

    @jax.jit
    def first():
        return {"step": jnp.int32(0), "big": jnp.zeros((512, 512))}

    def step(state):
        return {"step": state["step"] + 1, "big": state["big"] * 0.5 + state["step"]}

    donating = jax.jit(step, donate_argnums=0)
    opened = Checkpoints(tmp_path, keep_best=50)
    state = first()
    for number in range(1, 26):
        state = donating(donating(state))
        opened.save(number, state, {}, best=0.0)
    opened.wait()
    expected = {"step": np.int32(0), "big": np.float32(0)}
    for number in range(1, 26):
        expected = step(step(expected))
        restored = opened.restore_as_saved(number)
        assert int(restored["step"]) == expected["step"]
        assert np.unique(np.asarray(restored["big"])) == np.float32(expected["big"])
    opened.close()


def test_a_64_bit_checkpoint_is_read_whole_in_32_bits(tmp_path):
    opened = Checkpoints(tmp_path)
    with jax.enable_x64(True):
        opened.save(1, {"thirds": jnp.arange(3) / 3}, {})
        opened.wait()
    read = opened.restore_as_saved(1)["thirds"]
    assert read.dtype == np.float64
    assert np.array_equal(np.asarray(read), np.arange(3) / 3)
    opened.close()


def test_host_arrays_changed_after_saving(tmp_path):
    opened = Checkpoints(tmp_path)
    history = np.zeros((256, 256), np.float32)
    opened.save(1, {"history": history}, {})
    history[:] = 7
    opened.wait()
    assert not np.asarray(opened.restore_as_saved(1)["history"]).any()
    opened.close()


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, monkeypatch, capsys):
    running.train(running.toy(), tmp_path / "straight")
    running.stop_after(monkeypatch, 11)
    running.train(running.toy(), tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "11", "garbage")
    running.train(running.toy(), tmp_path / "run")
    assert "resumed at step 10" in capsys.readouterr().out
    running.assert_same_run(tmp_path / "straight", tmp_path / "run")
