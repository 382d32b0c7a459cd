import io
import math
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from common import writers
from common.errors import UserError


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fill(path, steps):
    writer = writers.JsonlWriter(path)
    for step in steps:
        writer.write(step, "train", {"loss": 1 / (1 + step)}, {"seconds": time.time()})
    writer.close()


def test_line_is_strict_sorted_json(tmp_path):
    writer = writers.JsonlWriter(tmp_path / "deep" / "metrics.jsonl")
    values = {"z": np.float32(0.5), "a": float("nan"), "m": -math.inf, "k": math.inf}
    writer.write(3, "evaluate", values, {"seconds": 2, "wall_rate": 1.0})
    writer.flush()
    text = (tmp_path / "deep" / "metrics.jsonl").read_text()
    expected = '{"step": 3, "kind": "evaluate", "a": "nan", "k": "inf", "m": "-inf", "z": 0.5'
    assert text == expected + ', "wall_rate": 1.0, "wall_seconds": 2.0}\n'
    assert math.isnan(float(writers.read(tmp_path / "deep" / "metrics.jsonl")[0]["a"]))
    writer.close()
    writer.close()


@pytest.mark.parametrize("name", ["wall_seconds", "step", "kind"])
def test_reserved_names_are_refused(tmp_path, name):
    writer = writers.JsonlWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=f"metric '{name}'"):
        writer.write(1, "train", {name: 1.0})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_half_written_last_line_is_left_out(tmp_path):
    fill(tmp_path / "metrics.jsonl", [1, 2])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "ki')
    assert [line["step"] for line in writers.read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_truncating_and_appending_equal_a_straight_run(tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    fill(straight, range(1, 7))
    fill(resumed, range(1, 4))
    writer = writers.JsonlWriter(resumed)
    size = writer.size()
    writer.write(4, "train", {"loss": 9.0})
    assert writer.size() > size == len(b"".join(resumed.read_bytes().splitlines(keepends=True)[:3]))
    writer.close()
    resumed.write_bytes(resumed.read_bytes() + b'{"step": 5, "ki')
    writers.truncate(resumed, size)
    fill(resumed, range(4, 7))
    assert writers.read(straight) != writers.read(resumed)
    assert writers.without_wall(writers.read(straight)) == writers.without_wall(writers.read(resumed))


def test_truncate_leaves_a_missing_file_missing_and_notices_lost_lines(tmp_path):
    writers.truncate(tmp_path / "metrics.jsonl", 0)
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"metrics\.jsonl has 0 bytes, but the checkpoint .* had 10"):
        writers.truncate(tmp_path / "metrics.jsonl", 10)


@pytest.mark.parametrize("bad", ["nonsense", '{"step": 2, "loss": NaN}', "[1]", '{"kind": "train"}'])
def test_broken_line_names_file_and_line(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    fill(path, [1])
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl"):
        writers.read(path)


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"there is no metrics file .*none\.jsonl"):
        writers.read(tmp_path / "none.jsonl")


def test_killed_process_leaves_whole_lines(tmp_path):
    code = (
        "import sys; from common.writers import JsonlWriter; writer = JsonlWriter(sys.argv[1]); step = 0\n"
        "while True: step += 1; writer.write(step, 'train', {'loss': 1.0})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "metrics.jsonl")])
    while not (tmp_path / "metrics.jsonl").exists() or (tmp_path / "metrics.jsonl").stat().st_size < 50_000:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")
    lines = writers.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))


def test_console_prints_plain_lines_without_a_terminal(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(writers.time, "monotonic", lambda: clock[0])
    file = io.StringIO()
    with writers.Console(100, "[student] phase", start_step=10, file=file) as console:
        assert math.isnan(console.rate())
        clock[0] = 60.0  # compilation
        console.update(11)
        console.log(11, "train", {"loss": 2.0})
        clock[0] = 70.0
        console.update(31)
        assert console.rate() == pytest.approx(2.0)
        console.log(31, "evaluate", {"loss": 0.123456, "accuracy": np.float32(0.5)})
        console.print("[bold]saved[/bold]")
    assert file.getvalue().splitlines() == [
        "[student] phase 11/100 train  [- steps/s, ETA -]  loss 2",
        "[student] phase 31/100 evaluate  [2 steps/s, ETA 0:00:34]  accuracy 0.5  loss 0.1235",
        "[bold]saved[/bold]",
    ]


def test_console_draws_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    file = Terminal()
    with writers.Console(4, "maml", file=file) as console:
        for step in range(1, 5):
            console.update(step)
            console.log(step, "train", {"loss": 1.0})
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "4/4" in text
    assert "steps/s, ETA 0:00:00" in text
    assert "maml 2/4 train  loss 1" in text
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1  # the cursor comes back


def test_console_update_is_cheap():
    file = Terminal()
    with writers.Console(10_000, "maml", file=file) as console:
        start = time.perf_counter()
        for step in range(10_000):
            console.update(step)
        assert (time.perf_counter() - start) / 10_000 < 1e-4


def test_table_is_readable_without_a_terminal():
    file = io.StringIO()
    writers.table("Results", ["method", "accuracy [%]"], [["maml", 48.123456], ["cx[grad]", "x" * 60]], file=file)
    lines = file.getvalue().splitlines()
    assert lines[0].strip() == "Results"
    header, rule, first, second = (line.strip() for line in lines[1:] if line.strip())
    assert re.fullmatch(r"\| method +\| accuracy \[%\] +\|", header)
    assert set(rule) == {"|", "-"}
    assert re.fullmatch(r"\| maml +\| 48.12 +\|", first)
    assert "cx[grad]" in second
    assert "x" * 60 in second


def test_tensorboard_writes_and_hides_what_a_resume_repeats(tmp_path):
    pytest.importorskip("tensorboardX")
    for start_step in (0, 2):
        first, second = writers.make_writers(
            tmp_path, tensorboard=True, wandb_project="", config={}, start_step=start_step
        )
        assert isinstance(first, writers.JsonlWriter)
        second.write(start_step + 1, "train", {"loss": np.float32(0.25)}, {"seconds": 1.0})
        for writer in (first, second):
            writer.flush()
            writer.close()
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert events.count(b"train/loss") == 2
    assert b"wall/seconds" in events


def test_tensorboard_is_skipped_when_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    made = writers.make_writers(tmp_path, tensorboard=True, wandb_project="", config={})
    assert [type(writer) for writer in made] == [writers.JsonlWriter]
    made[0].close()


def test_wandb_asked_for_and_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"config\.wandb_project is 'shots'.*pip install wandb"):
        writers.make_writers(tmp_path, tensorboard=False, wandb_project="shots", config={})


@pytest.mark.parametrize(("environment", "mode"), [({}, "offline"), ({"WANDB_API_KEY": "k"}, "online")])
def test_wandb_logs_and_is_offline_without_a_key(tmp_path, monkeypatch, environment, mode):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish")
    )
    fake = types.SimpleNamespace(init=lambda **given: calls.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file, wandb = writers.make_writers(tmp_path, tensorboard=False, wandb_project="shots", config={"way": 5})
    wandb.write(7, "train", {"loss": 1.0})
    wandb.flush()
    wandb.close()
    file.close()
    assert calls[0]["mode"] == mode
    assert calls[0]["config"] == {"way": 5}
    assert calls[1:] == [(7, {"train/loss": 1.0}), "finish"]
    assert calls[0]["project"] == "shots"
