"""What a user can get wrong, the same for all ten papers' methods, through each method's own `main.py`: exit code 2 and
one sentence that says what is wrong and what to do, no traceback, nothing made or changed.

What only one method has is tested in its own test_bad_input.py, mistakes of the flags in tests/common/test_config.py.
"""

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
import time
from pathlib import Path

import pytest
from absl.testing import flagsaver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import app, config

# ml_collections reads config files in a way that Python 3.12 dropped, where it takes another.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[2]
METHODS = {
    "cxgrad": "fewshot/configs/cxgrad.py",
    "tapl": "fewshot/configs/tapl.py",
    "sskd_svd": "distill/configs/sskd_svd.py",
    "mhgd": "distill/configs/mhgd.py",
    "iepkt": "distill/configs/iepkt.py",
    "vit": "vit_small/configs/vit.py",
    "cfa": "anomaly/configs/cfa.py",
    "elim": "fer/configs/elim.py",
    "ekg": "pruning/configs/ekg.py",
    "tte": "multitask/configs/tte.py",
}
# (mistake, flags, what the sentence says); {dir} is a folder that holds what `prepare` put there.
MISTAKES = [
    (
        "unknown field",
        "--config.sed=1",
        r"config.sed, which does not exist \(did you mean 'seed'\?\)",
    ),
    ("field of another type", "--config.seed=one", "config.seed is 'one', but must be a whole number"),
    ("field without a value", "--config.seed=", "config.seed is '', but must be a whole number"),
    (
        "seed that is none",
        "--config.seed=-1 --workdir={dir}/new",
        "config.seed is -1, but must lie (in|between) 0",
    ),
    ("unknown flag", "--wrkdir=x", r"--wrkdir is no flag of this program \(did you mean '--workdir'\?\)"),
    ("unknown mode", "--mode=evaluate", "--mode is 'evaluate', but one of train, eval"),
    ("evaluation of nothing", "--mode=eval --workdir={dir}/new", r"There is no run in .*/new; train first"),
    (
        "folder of somebody else",
        "--workdir={dir}/other",
        r"holds 'notes.txt' but no config.json.* another --work",
    ),
    ("file in the way", "--workdir={dir}/file", r"work directory .*/file cannot be used .*choose another --workdir"),
    ("run of another config", "--workdir={dir}/taken", r"The run in .*/taken has another config \(.*another --workdir"),
    ("damaged config", "--workdir={dir}/damaged", r"damaged/config.json is not readable as JSON .*another --workdir"),
    (
        "unknown data set",
        "--config.dataset=glyph --workdir={dir}/new",
        r"'glyph'.*(did you mean|one of|known)",
    ),
]


def prepare(folder):
    """What must still be there, unchanged, when a command has failed."""
    for name, file, text in (
        ("other", "notes.txt", "mine"),
        ("taken", "config.json", json.dumps({"name": "another"})),
        ("damaged", "config.json", '{"seed": 0'),
    ):
        (folder / name).mkdir()
        (folder / name / file).write_text(text)
    (folder / "file").write_text("")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `python -m <method>.main` in this process: (exit code, standard output, standard error)."""

    def run(method, *flags):
        given = []
        monkeypatch.setattr(app, "run", lambda *args, **kwargs: given.append((args, kwargs)))
        monkeypatch.chdir(ROOT)
        runpy.run_module(f"{method}.main", run_name="__main__")
        ((build, *_), options) = (given[0][0] or (None,)), given[0][1]
        monkeypatch.setattr(sys, "argv", [f"{method}.main", *flags, "--compilation_cache=off"])
        with flagsaver.flagsaver():
            try:
                config.parse_flags(sys.argv)
                code = app._main(
                    build, options.get("phases_of"), options.get("modes", {}), options.get("evaluation_fields", ())
                )
            except SystemExit as stop:
                code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("flags", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistake_is_one_sentence(method, flags, message, call, tmp_path):
    prepare(tmp_path)
    before = contents(tmp_path)
    file = METHODS[method]
    started = time.process_time()
    code, out, error = call(file.partition("/")[0], f"--config={file}:smoke", *shlex.split(flags.format(dir=tmp_path)))
    assert code == 2, error
    assert out == ""
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert time.process_time() - started < 5
    assert contents(tmp_path) == before


@pytest.mark.parametrize("method", METHODS)
def test_unknown_variant_is_one_sentence(method, call):
    code, _, error = call(METHODS[method].partition("/")[0], f"--config={METHODS[method]}:smok")
    assert code == 2
    assert re.search(r"variant 'smok' does not exist \(did you mean 'smoke'\?\); known variants: .*smoke", error)
    assert error.count("\n") == 1


NAMES = (
    *("--config", "--config.seed", "--noconfig.seed", "-config.name", "--config.", "--config.optimizer", "--config..x"),
    *("--config.optimizer.learning_rate", "--config.propagation", "--config.glyphs.scripts", "--config.seed[0]"),
    *("--workdir", "--mode", "--noworkdir", "--multihost", "--num_processes", "--", "-", "---config", "config"),
)
VALUES = (
    *("", "1", "-1", "1.5", "(1,", "('a', 2)", "None", "nan", "1e999", "9" * 400, "'", "[]", "{'a': 1}", "true", "\0"),
    *("../x", ":", "x.py", "x.py:", f"{METHODS['cxgrad']}:", f"{METHODS['cxgrad']}:a:b", str(ROOT), "/dev/null"),
    *("__import__('os').system('touch marker')", "\N{SNOWMAN}", "a\nb", "(" * 300),
)
ARGUMENTS = st.builds(
    lambda name, sign, value: f"{name}{sign}{value}",
    st.sampled_from(NAMES) | st.text(max_size=6).map("--config.{}".format),
    st.sampled_from(["=", "", "=="]),
    st.sampled_from(VALUES) | st.text(max_size=6),
)


@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ARGUMENTS, max_size=3), st.booleans())
def test_any_command_line_is_read_or_answered_in_one_sentence(monkeypatch, arguments, behind):
    monkeypatch.chdir(ROOT)
    first = f"--config={METHODS['cxgrad']}:smoke"
    monkeypatch.setattr(sys, "argv", ["main", *([first] if behind else []), *arguments])
    error = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(error):
        try:
            config.parse_flags(sys.argv)
            code = 0
        except SystemExit as stop:
            code = stop.code
    assert (code, error.getvalue().count("\n")) in ((0, 0), (2, 1)), error.getvalue()
    assert not (ROOT / "marker").exists()
