import json
import re
import subprocess
import sys

import pytest
from ml_collections import ConfigDict, config_dict

from common import config as configs
from common.errors import UserError

TOY_MAIN = """
from absl import app, flags
from ml_collections import config_flags
from common import config

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
flags.DEFINE_string("workdir", None, "Where the run writes.")
flags.DEFINE_integer("repeats", 1, "How often.")
flags.mark_flag_as_required("workdir")

def main(argv):
    print(config.to_json(CONFIG.value))

if __name__ == "__main__":
    app.run(main, flags_parser=config.parse_flags)
"""

TOY_CONFIG = """
from ml_collections import ConfigDict
from common.config import select

def get_config(variant=""):
    config = ConfigDict()
    config.variant = ""
    config.num_steps = 10
    config.rate = 0.5
    config.second_order = True
    config.dataset = "glyphs"
    config.sizes = (1, 2)
    config.optimizer = ConfigDict(dict(name="adam", learning_rate=0.1))
    return select(config, variant, {"smoke": {"num_steps": 2, "optimizer.learning_rate": 1}})
"""

BROKEN_CONFIGS = {
    "syntax.py": "def get_config(:\n",
    "no_function.py": "x = 1\n",
    "raises.py": "def get_config(variant=''):\n    return undefined\n",
    "imports.py": "import not_a_module_at_all\n",
    "plain.py": "def get_config():\n    from ml_collections import ConfigDict\n    return ConfigDict()\n",
    "nothing.py": "def get_config(variant=''):\n    pass\n",
    "user_error.py": "from common.errors import UserError\ndef get_config():\n    raise UserError('way must be 5.')\n",
    "notes.txt": "hello\n",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A function that runs the toy program with some arguments."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "configs").mkdir()
    (folder / "main.py").write_text(TOY_MAIN)
    (folder / "configs" / "toy.py").write_text(TOY_CONFIG)
    for name, text in BROKEN_CONFIGS.items():
        (folder / name).write_text(text)

    def run(*arguments):
        command = [sys.executable, "-m", "main", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)

    return run


def toy(variant=""):
    namespace = {}
    exec(TOY_CONFIG, namespace)
    return namespace["get_config"](variant)


BAD_COMMAND_LINES = [
    (
        "--config=configs/toy.py --config.num_step=3",
        "which does not exist (did you mean 'num_steps'?)",
    ),
    ("--config=configs/toy.py --config.optimizer.learning_rat=3", "did you mean 'optimizer.learning_rate'?"),
    ("--config=configs/toy.py --config.learning_rate=3", "did you mean 'optimizer.learning_rate'?"),
    ("--config=configs/toy.py --config.num_steps.x=3", "config.num_steps.x, which does not exist"),
    ("--config=configs/toy.py --config.optimizer=3", "set one of its fields: optimizer.learning_rate, optimizer.name"),
    ("--config=configs/toy.py --config.num_steps=ten", "config.num_steps is 'ten', but must be a whole number."),
    ("--config=configs/toy.py --config.num_steps=1.5", "config.num_steps is '1.5', but must be a whole number."),
    ("--config=configs/toy.py --config.num_steps=", "config.num_steps is '', but must be a whole number."),
    ("--config=configs/toy.py --config.rate=fast", "config.rate is 'fast', but must be a number."),
    (
        "--config=configs/toy.py --config.second_order=maybe",
        "second_order is 'maybe', but must be true or false.",
    ),
    ("--config=configs/toy.py --config.sizes=(1,", "config.sizes is '(1,', but must be a tuple such as (1, 2)."),
    ("--config=configs/toy.py --config.sizes=('a','b')", "config.sizes is ('a', 'b'), but must hold only elements of"),
    ("--config=configs/toy.py --config.sizes[7]=1", "must set the whole value: --config.sizes="),
    ("--config=configs/toy.py --config.dataset", "--config.dataset has no value; give it as"),
    ("--config=configs/toy.py:smok", "'smok' does not exist (did you mean 'smoke'?); known variants: smoke."),
    ("--config=configs/toy.py --wrkdir=x", "--wrkdir is no flag of this program (did you mean '--workdir'?)"),
    ("--config=configs/toy.py --repeats=many", "repeats"),
    ("--config=configs/toy.py", "--workdir has no value; give it as --workdir=value."),
    ("--config=configs/toy.py extra", "'extra' is no flag"),
    ("--config=configs/tpy.py", "no config file 'configs/tpy.py'"),
    ("--config=configs/tpy.py --config.num_steps=3", "(did you mean 'configs/toy.py'?)"),
    ("--config=configs", "no config file 'configs'"),
    ("--config=", "--config is missing; for example"),
    ("--config", "--config is missing; for example"),
    ("", "--config is missing; for example: python -m main --config=configs/toy.py"),
    ("--config.num_steps=3", "--config is missing; for example"),
    ("--config.num_steps=3 --config=configs/toy.py", "--config.num_steps must come behind --config=configs/toy.py."),
    ("--config=syntax.py", "SyntaxError in line 1"),
    ("--config=no_function.py", "no_function.py must define a function get_config"),
    ("--config=raises.py", "NameError in line 2: name 'undefined' is not defined."),
    ("--config=imports.py", "No module named 'not_a_module_at_all'"),
    ("--config=plain.py:smoke", "takes no variant: leave out ':smoke'"),
    ("--config=nothing.py", "get_config must return a ConfigDict, but returned nothing."),
    ("--config=user_error.py", "way must be 5."),
    ("--config=notes.txt", "must be a Python file"),
]


@pytest.mark.parametrize(("arguments", "expected"), BAD_COMMAND_LINES, ids=[line for line, _ in BAD_COMMAND_LINES])
def test_bad_command_line_is_one_sentence_and_exit_code_2(program, arguments, expected):
    workdir = () if "--workdir" in expected else ("--workdir=run",)
    result = program(*workdir, *arguments.split())
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_good_command_line_reaches_main(program):
    result = program(
        *("--workdir=run", "--config", "configs/toy.py:smoke"),
        *("--config.rate=2", "--noconfig.second_order", "--config.sizes=(3,)", "--config.optimizer.name", "sgd"),
    )
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["variant"] == "smoke"
    assert values["num_steps"] == 2
    assert values["rate"] == 2.0
    assert values["second_order"] is False
    assert values["sizes"] == [3]
    assert values["optimizer"] == {"name": "sgd", "learning_rate": 1.0}


def test_help_lists_the_flags(program):
    result = program("--help")
    assert "--workdir" in result.stdout
    assert "Traceback" not in result.stderr
    assert "missing" not in result.stderr


def test_import_is_quick_and_without_jax():
    code = "import sys, time; t = time.time(); import common.config; print(time.time() - t, 'jax' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert output[1] == "False"
    assert float(output[0]) < 2.0  # 0.15 s on an idle machine


@pytest.mark.parametrize("variant", ["", None])
def test_no_variant_leaves_the_config(variant):
    assert toy(variant) == toy()
    assert toy().num_steps == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_stepz": 1}, "sets config.num_stepz, which does not exist (did you mean 'num_steps'?)"),
        ({"optimizer.learning": 1}, "config.optimizer.learning, which does not exist"),
        ({"optimizer": {"name": "sgd"}}, "whole group config.optimizer"),
        ({"num_steps": 1.5}, "sets config.num_steps to 1.5, but it must be a whole number"),
        ({"num_steps": True}, "must be a whole number"),
        ({"num_steps": None}, "must be a whole number"),
        ({"rate": "1"}, "must be a number"),
        ({"rate": True}, "must be a number"),
        ({"second_order": 1}, "must be true or false"),
        ({"dataset": 3}, "must be text"),
        ({"sizes": 3}, "must be a tuple"),
        ({"sizes": (1, "2")}, "must hold only elements of type int"),
    ],
)
def test_variant_is_strict(overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        configs.select(toy(), "wrong", {"wrong": overrides})


def test_variant_follows_references():
    config = ConfigDict({"variant": "", "batch_size": 4})
    config.evaluate_batch_size = config.get_ref("batch_size") * 2
    selected = configs.select(config, "large", {"large": {"batch_size": 8}})
    assert selected.evaluate_batch_size == 16
    assert json.loads(configs.to_json(selected)) == {"variant": "large", "batch_size": 8, "evaluate_batch_size": 16}


def test_json_round_trip_keeps_types():
    text = configs.to_json(toy())
    assert configs.from_json(text) == toy()
    assert configs.to_json(configs.from_json(text)) == text
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize("value", [float("inf"), len, object()])
def test_json_refuses_what_it_cannot_hold(value):
    with pytest.raises(UserError, match=r"config\.a\.b is .* JSON"):
        configs.to_json(ConfigDict({"a": {"b": value}}))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_bad_json_is_a_user_error(text):
    with pytest.raises(UserError, match="JSON"):
        configs.from_json(text)


def test_differences_are_readable_and_can_be_ignored():
    old, new = toy(), toy("smoke")
    assert configs.differences(old, new) == [
        "num_steps: 10 -> 2",
        "optimizer.learning_rate: 0.1 -> 1.0",
        "variant: '' -> 'smoke'",
    ]
    assert configs.differences(old, new, ignore=("optimizer", "variant", "num")) == ["num_steps: 10 -> 2"]
    assert configs.differences(old, configs.from_json(configs.to_json(old))) == []
    assert configs.differences(ConfigDict({"a": [1]}), ConfigDict({"a": (1,), "b": 2})) == ["b: (absent) -> 2"]


def test_check_names_field_value_and_remedy():
    configs.check(toy(), "num_steps", True, "must be even")
    with pytest.raises(UserError, match=r"^config\.num_steps is 10, but must divide by 8\.$"):
        configs.check(toy(), "num_steps", False, "must divide by 8")
    with pytest.raises(UserError, match=r"reads config\.nume_steps, which does not exist \(did you mean 'num_steps'"):
        configs.check(toy(), "nume_steps", False, "must divide by 8")


@pytest.mark.parametrize("value", [0, -1, 0.0, float("nan"), float("inf"), True, "3", None])
def test_check_positive(value):
    configs.check_positive(toy(), "num_steps", "optimizer.learning_rate")
    with pytest.raises(UserError, match=r"config\.a\.b is .*, but must be a number above 0"):
        configs.check_positive(ConfigDict({"a": {"b": value}}), "a.b")


def test_check_choice_lists_choices_and_nearest():
    configs.check_choice(toy(), "optimizer.name", ("adam", "sgd"))
    with pytest.raises(UserError, match=r"must be one of 'adamw', 'sgd' \(did you mean 'adamw'\?\)"):
        configs.check_choice(toy(), "optimizer.name", ("adamw", "sgd"))


def test_placeholder_keeps_its_type():
    config = ConfigDict({"variant": "", "path": config_dict.placeholder(str)})
    assert configs.select(config.copy_and_resolve_references(), "a", {"a": {"path": "x"}}).path == "x"
    with pytest.raises(UserError, match="must be text"):
        configs.select(config, "a", {"a": {"path": 3}})
