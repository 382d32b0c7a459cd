"""The rules of the house, checked on the files themselves."""

import ast
import functools
import importlib
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from common.config import flatten

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.parent.name for path in ROOT.glob("*/main.py"))
PACKAGES = ["common", *METHODS]
CODE = sorted(path for package in [*PACKAGES, "benchmarks"] for path in (ROOT / package).rglob("*.py"))
CONFIGS = sorted(
    path for method in METHODS for path in (ROOT / method / "configs").glob("*.py") if path.name != "__init__.py"
)
MOST_LINES, MEDIAN_LINES = 450, 160


def named(path):
    """For the names of test cases."""
    return str(path.relative_to(ROOT))


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


def imports(path):
    """All modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tracked():
    """All files of the repository that are or may be committed, as text."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                yield path, content.decode(errors="replace")


def test_there_is_something_to_check():
    assert METHODS
    assert len(CODE) > 20
    assert CONFIGS


def test_arrows_go_from_method_to_common_only():
    for path in CODE:
        package = path.relative_to(ROOT).parts[0]
        tops = {module.partition(".")[0] for module in imports(path)}
        if package == "common":
            assert not tops & {*METHODS, "benchmarks", "tests"}, path
        elif package in METHODS:
            assert not tops & ({*METHODS, "benchmarks", "tests"} - {package}), path


def test_no_tensorflow_or_torch():
    """tensorflow-datasets alone may load TensorFlow, when it downloads a set of its own."""
    for path in CODE:
        if path.relative_to(ROOT).parts[0] != "benchmarks":
            assert not {module.partition(".")[0] for module in imports(path)} & {"tensorflow", "torch"}, path


def test_training_does_not_touch_the_preparation_of_data():
    """Builders are loaded by the command that prepares, never by what reads."""
    for path in CODE:
        name = path.relative_to(ROOT).as_posix()
        if name != "common/data/prepare.py" and not name.startswith("common/data/builders/"):
            preparing = ("common.data.builders", "common.data.prepare")
            assert not any(module.startswith(preparing) for module in imports(path)), path


def test_there_is_one_training_loop():
    """Only `common` names the stepper, and only its loop runs over the steps of a config or calls a train step."""
    for path in CODE:
        name, package = path.relative_to(ROOT).as_posix(), path.relative_to(ROOT).parts[0]
        if package == "benchmarks":
            continue
        tree = parsed(path)
        if package != "common":
            assert "common.step" not in {module.rpartition(".")[0] for module in imports(path)} | imports(path), path
        for loop in (node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)):
            called = {_called(node) for node in ast.walk(loop) if isinstance(node, ast.Call)}
            assert not called & {"train_step", "stepper", "_one_step"} or name == "common/loop.py", (name, loop.lineno)
            header = ast.unparse(loop.iter if isinstance(loop, ast.For) else loop.test)
            second = "config.num_steps" in header and name != "common/loop.py"
            assert not second, f"{name}:{loop.lineno} looks like a second training loop: {header}"
    assert re.search(r"while step < self\.config\.num_steps", (ROOT / "common/loop.py").read_text())


def _called(node):
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_files_are_short():
    lengths = {named(path): len(path.read_text().splitlines()) for path in CODE}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
    assert statistics.median(lengths.values()) <= MEDIAN_LINES


def test_nothing_names_this_machine_or_a_registry():
    # Put together here, so that this file does not hold what it looks for.
    machine = [rf"(?<![\w.])/{folder}/" for folder in ("work", "root", "home/\\w+", "tmp/" + "venv")]
    registries = [
        "pypi" + r"\.org",
        "pythonhosted" + r"\.org",
        "artifac" + "tory",
        "proxy" + r"\.golang",
        "--(extra-)?index-url",
    ]
    pattern = re.compile("|".join(machine + registries))
    found = [f"{named(path)}: {match[0]}" for path, text in tracked() if (match := pattern.search(text))]
    assert found == []


def test_no_unfinished_business():
    pattern = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b")
    found = [
        f"{named(path)}: {match[0]}"
        for path, text in tracked()
        if path.suffix == ".py" and (match := pattern.search(text))
    ]
    assert found == []


def test_errors_of_users_are_no_assertions_and_nothing_is_swallowed():
    for path in CODE:
        if path.relative_to(ROOT).parts[0] == "benchmarks":
            continue
        for node in ast.walk(parsed(path)):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"
            if isinstance(node, ast.ExceptHandler) and not _raises_again(node):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("everything", "Exception", "BaseException"), f"{path}:{node.lineno}"


def _raises_again(handler):
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_seeds_do_not_depend_on_the_process():
    for path in CODE:
        calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        assert "hash" not in {node.func.id for node in calls if isinstance(node.func, ast.Name)}, path


def test_packages_are_ours_and_hide_no_module_of_python():
    for package in PACKAGES:  # `common` and `fer` are also names of other distributions
        assert Path(importlib.import_module(package).__file__ or "").parent == ROOT / package
    assert not set(PACKAGES) & sys.stdlib_module_names
    # Modules inside packages are safe with absolute imports, unless their folder itself is put on the path.
    top = {path.stem for path in ROOT.glob("*.py")}
    assert not top & sys.stdlib_module_names


def test_public_functions_and_files_are_described():
    for path in CODE:
        tree = parsed(path)
        if tree.body and path.relative_to(ROOT).parts[0] != "benchmarks":
            assert ast.get_docstring(tree), f"{path} does not say what it is"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_same_rooms(method):
    folder = ROOT / method
    for name in ("main.py", "experiment.py", "train.py", "README.md"):
        assert (folder / name).is_file(), name
    assert len((folder / "main.py").read_text().splitlines()) <= 40
    assert (folder / "configs").is_dir()
    assert f"{method}/" in (ROOT / "README.md").read_text()


def test_config_files_build_every_variant_fast_and_without_jax():
    program = (
        "import importlib.util, json, sys, time\n"
        "from ml_collections import ConfigDict\n"
        "import common.config\n"
        "seconds = {}\n"
        "for path in sys.argv[1:]:\n"
        "    started = time.process_time()\n"
        "    spec = importlib.util.spec_from_file_location('config', path)\n"
        "    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "    assert isinstance(module.get_config(), ConfigDict), path\n"
        "    for variant in module.VARIANTS:\n"
        "        assert module.get_config(variant).variant == variant, path\n"
        "        common.config.to_json(module.get_config(variant))\n"
        "    assert 'smoke' in module.VARIANTS, path\n"
        "    assert not {'jax', 'tensorflow', 'torch'} & sys.modules.keys(), path\n"
        "    seconds[path] = time.process_time() - started\n"
        "print(json.dumps(seconds))"
    )
    files = [str(path) for path in CONFIGS]
    done = subprocess.run([sys.executable, "-c", program, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds = json.loads(done.stdout)
    assert list(seconds) == files
    assert max(seconds.values()) < 1, seconds


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_config_file_says_how_to_run_it(path):
    described = ast.get_docstring(parsed(path)) or ""
    assert f"--config={path.relative_to(ROOT).as_posix()}" in described


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_every_field_of_a_config_is_read(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    read = names_read_in("common") | names_read_in(path.relative_to(ROOT).parts[0])
    assert {field.rpartition(".")[2] for field in flatten(module.get_config())} - read == set()


@functools.cache
def names_read_in(package):
    """Attributes, strings and arguments of a package's files, but for its configs."""
    read = set()
    for file in CODE:
        if file.relative_to(ROOT).parts[0] == package and "configs" not in file.parts:
            for node in ast.walk(parsed(file)):
                if isinstance(node, ast.Attribute):
                    read.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    read.add(node.value.rpartition(".")[2])
                elif isinstance(node, ast.arg | ast.keyword) and node.arg:  # a group passed on as keyword arguments
                    read.add(node.arg)
    return read


def test_everything_can_be_imported_without_tensorflow_and_torch():
    program = (
        "import importlib, sys\n"
        "class Absent:\n"  # None in sys.modules would do, if tensorflow-datasets did not take it for a loaded module
        "    def find_spec(name, path, target=None):\n"
        "        if name in ('tensorflow', 'torch', 'tensorboardX', 'wandb'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(len(sys.argv) - 1)"
    )
    files = [path for path in CODE if path.relative_to(ROOT).parts[0] in PACKAGES]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    done = subprocess.run([sys.executable, "-c", program, *modules], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules)


def test_families_of_tests_use_one_another_s_helpers_only_from_common():
    """As the packages do: those of a method import nothing from those of another, those of `common` from none."""
    shared = {"__init__", "common", "conftest", "golden_files"}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        package = path.relative_to(ROOT / "tests").parts[0]
        if package in (*METHODS, "common"):
            used = {module.split(".")[1] for module in imports(path) if module.startswith("tests.")}
            assert used <= {package, *shared}, path
