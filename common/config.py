"""Configs: variants, checks, JSON, and a command line whose mistakes are answered in one sentence.

Imports no jax, so that a config file and a mistyped flag cost a fraction of a second.
"""

import importlib.util
import inspect
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path
from ml_collections.config_flags.config_flags import is_config_flag

from common.errors import UserError, did_you_mean

_ABSENT = object()
_KINDS = {
    bool: "must be true or false",
    int: "must be a whole number",
    float: "must be a number",
    str: "must be text",
    tuple: "must be a tuple such as (1, 2)",
}
# What running somebody's config file can plausibly raise; interrupts and exhausted memory pass through.
_FILE_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)


def select(config: ConfigDict, variant: str | None, variants: Mapping[str, Mapping[str, object]]) -> ConfigDict:
    """Apply a named variant; the last line of every `get_config(variant="")`.

    Args:
      config: the default config, changed in place.
      variant: the text behind the colon of `--config=file.py:variant`; "" or None leaves the config as it is.
      variants: name -> {dotted field: value}.

    Returns:
      `config`, with `config.variant` set to the name.

    Raises:
      UserError: unknown variant, or a variant that sets an unknown field or a value of another type.
    """
    if not variant:
        return config
    if variant not in variants:
        known, near = ", ".join(sorted(variants)) or "none", did_you_mean(variant, variants)
        raise UserError(f"variant {variant!r} does not exist{near}; known variants: {known}.")
    for field, value in variants[variant].items():
        _check_field_exists(config, field, f"variant {variant!r} sets")
        problem = _type_problem(config[field], _declared_type(config, field), value)
        if problem:
            raise UserError(f"variant {variant!r} sets config.{field} to {value!r}, but it {problem}.")
        config_path.set_value(field, config, value)
    config.variant = variant
    return config


def to_json(config: ConfigDict) -> str:
    """Return the config as sorted, indented strict JSON; references are resolved, tuples become lists.

    Raises:
      UserError: a value that JSON cannot hold, such as a function or infinity.
    """
    for field, value in flatten(config).items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"config.{field} is {value!r}, but must be something that JSON can hold.") from error
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> ConfigDict:
    """Return the config that `to_json` wrote, with every list as a tuple.

    Raises:
      UserError: text that is not a JSON object.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the config is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"the config must be a JSON object, but is {_kind(values)}.")
    return ConfigDict(_tuples(values))


def flatten(config: ConfigDict) -> dict[str, object]:
    """Return {dotted field: value} over all fields, references resolved, sorted by name."""
    fields = {}
    for name, value in config.items():
        inner = flatten(value) if isinstance(value, ConfigDict) else None
        if inner is not None:  # a group without fields has none
            fields |= {f"{name}.{rest}": leaf for rest, leaf in inner.items()}
        else:
            fields[name] = value
    return fields


def differences(old: ConfigDict, new: ConfigDict, ignore: Collection[str] = ()) -> list[str]:
    """Return one line "field: old -> new" for each field that differs, sorted by field.

    `ignore` holds dotted fields or whole groups. A list equals a tuple of the same values.
    """
    before, after = flatten(old), flatten(new)
    lines = []
    for field in sorted(before.keys() | after.keys()):
        if any(field == name or field.startswith(name + ".") for name in ignore):
            continue
        pair = before.get(field, _ABSENT), after.get(field, _ABSENT)
        if _tuples(pair[0]) != _tuples(pair[1]):
            shown = ["(absent)" if value is _ABSENT else repr(value) for value in pair]
            lines.append(f"{field}: {shown[0]} -> {shown[1]}")
    return lines


def check(config: ConfigDict, field: str, ok: bool, accepted: str) -> None:
    """Raise UserError "config.<field> is <value>, but <accepted>." unless `ok`; `accepted` starts with "must"."""
    if not ok:
        raise UserError(f"config.{field} is {_value(config, field)!r}, but {accepted}.")


def check_positive(config: ConfigDict, *fields: str) -> None:
    """Raise UserError unless every field is a finite number above zero."""
    for field in fields:
        value = _value(config, field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        check(config, field, number and math.isfinite(value) and value > 0, "must be a number above 0")


def check_choice(config: ConfigDict, field: str, choices: Iterable[str]) -> None:
    """Raise UserError that lists the choices and the nearest one unless the field is one of them."""
    choices = list(choices)
    value = _value(config, field)
    accepted = f"must be one of {', '.join(map(repr, choices))}{did_you_mean(str(value), choices)}"
    check(config, field, value in choices, accepted)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line; the `flags_parser` of `absl.app.run`.

    Whatever is wrong with the flags, the config file, its variant or an overridden field becomes one sentence on
    standard error and exit code 2. `argv` must be `sys.argv`, which is what ml_collections looks at for overrides.
    """
    try:
        return _parse(list(argv))
    except UserError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")  # flags may hold line breaks
        sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    names = [name for name in flags.FLAGS if is_config_flag(flags.FLAGS[name])]
    # Loaded once more by the flag itself: here to explain mistakes, and to know the types before any override.
    configs = {name: _load_and_check_overrides(name, argv) for name in names}
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(_explain(error, configs)) from error
    for name, config in configs.items():
        if config is None:
            raise UserError(_missing_config(name))
        for field, value in config_flags.get_override_values(flags.FLAGS[name]).items():
            old = config_path.get_value(field, config)
            problem = _type_problem(old, type(value), value) if isinstance(value, tuple) else ""
            if problem:
                raise UserError(f"{name}.{field} is {value!r}, but {problem}.")
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag; flags look like --name=value, and --help lists them.")
    return rest


def _load_and_check_overrides(name: str, argv: list[str]) -> ConfigDict | None:
    given = [i for i, argument in enumerate(argv) if re.match(rf"--?{name}(=|$)", argument)]
    found = [(i, re.match(rf"--?(?:no)?{name}\.([^=]*)", argument)) for i, argument in enumerate(argv)]
    overrides = {match[1]: i for i, match in found if match}
    _, _, path = argv[given[-1]].partition("=") if given else ("", "", "")
    if given and "=" not in argv[given[-1]] and given[-1] + 1 < len(argv):  # --config path
        path = argv[given[-1] + 1]
    if not path:
        if given or overrides:
            raise UserError(_missing_config(name))
        return None
    config = _load(name, path)
    for field, position in overrides.items():
        whole, bracket, _ = field.partition("[")
        _check_field_exists(config, whole, f"--{name}.{field} sets")
        if bracket:
            raise UserError(f"--{name}.{field} sets one element, but must set the whole value: --{name}.{whole}=...")
        if position < given[0]:
            raise UserError(f"--{name}.{field} must come behind --{name}={path}.")
    return config


def _load(name: str, argument: str) -> ConfigDict:
    """Run the config file of `--<name>=<path>[:<variant>]`; any mistake in it is a UserError."""
    path, colon, variant = argument.partition(":")
    if not os.path.isfile(path):  # not Path.is_file, which raises where the name is too long
        folder = Path(path).parent
        nearby = map(str, folder.glob("*.py") if os.path.isdir(folder) else [])
        raise UserError(
            f"--{name}={argument}: there is no config file {path!r} in {os.getcwd()}{did_you_mean(path, nearby)}."
        )
    spec = importlib.util.spec_from_file_location(f"{name}_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--{name}={argument}: a config file must be a Python file whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f'{path} must define a function get_config(variant="").')
        variants = (variant,) if colon else ()
        if not _accepts(get_config, variants):
            remedy = f"takes no variant: leave out ':{variant}'" if colon else 'must work without arguments: variant=""'
            raise UserError(f"get_config of {path} {remedy}.")
        config = get_config(*variants)
    except UserError as error:
        raise UserError(f"--{name}={argument}: {error}") from error
    except _FILE_ERRORS as error:
        raise UserError(f"--{name}={argument}: {_where(error, path)}: {_one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--{name}={argument}: get_config must return a ConfigDict, but returned {_kind(config)}.")
    return config


def _accepts(function, arguments: tuple[str, ...]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def _where(error: BaseException, path: str) -> str:
    """Return the kind of error and, where it can be told, the line of the config file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == os.path.realpath(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{type(error).__name__} in line {line}" if line else type(error).__name__


def _explain(error: Exception, configs: Mapping[str, ConfigDict | None]) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname  # pyright: ignore[reportAttributeAccessIssue]
        near = did_you_mean(f"--{name}", [f"--{known}" for known in flags.FLAGS])
        return f"--{name} is no flag of this program{near}; --help lists the flags."
    valueless = re.match(r"Missing value for flag --(\S+?)\.?$|flag --([^=]+)=None: ", str(error))
    if valueless:  # the second for a flag marked as required
        name = valueless[1] or valueless[2]
        return _missing_config(name) if name in configs else f"--{name} has no value; give it as --{name}=value."
    illegal = re.match(r"flag --([^=]+)=(.*?): ", str(error), re.DOTALL)
    if illegal:
        name, _, field = illegal[1].partition(".")
        config = configs.get(name) if field else None
        if config is not None:
            kind = _KINDS.get(_declared_type(config, field), "must be of the type it has in the config file")
            return f"{name}.{field} is {illegal[2]!r}, but {kind}."
    return _one_line(error)


def _missing_config(name: str) -> str:
    """Name the flag, and a command that would work: the first config file beside the program."""
    main = sys.modules["__main__"]
    program = Path(getattr(main, "__file__", None) or sys.argv[0])
    spec = getattr(main, "__spec__", None)
    command = f"python -m {spec.name}" if spec else f"python {sys.argv[0]}"
    files = sorted(path for path in program.parent.glob("configs/*.py") if path.name != "__init__.py")
    example = os.path.relpath(files[0]) if files else "path/to/config.py"
    return f"--{name} is missing; for example: {command} --{name}={example}"


def _check_field_exists(config: ConfigDict, field: str, who: str) -> None:
    fields = flatten(config)
    groups = {name[:i] for name in fields for i, letter in enumerate(name) if letter == "."}
    if field in groups:
        inside = ", ".join(name for name in fields if name.startswith(field + "."))
        raise UserError(f"{who} the whole group config.{field}, but must set one of its fields: {inside}.")
    if field not in fields:
        raise UserError(f"{who} config.{field}, which does not exist{did_you_mean(field, fields)}.")


def _declared_type(config: ConfigDict, field: str) -> Any:
    return config_path.get_type(field, config)


def _value(config: ConfigDict, field: str) -> Any:
    _check_field_exists(config, field, "the program reads")
    return config[field]


def _type_problem(old: object, kind: Any, new: object) -> str:
    """Say what `new` must be in place of `old`, whose declared type is `kind`; "" when it fits."""
    if kind is type(None) or (old is None and new is None):
        return ""
    if isinstance(new, bool) != (kind is bool) or not isinstance(new, int | float if kind is float else kind):
        return _KINDS.get(kind, f"must be a {kind.__name__}")
    if isinstance(old, tuple) and old and isinstance(new, tuple):
        kinds = {type(element) for element in old}
        element_kind = kinds.pop()
        if not kinds and any(_type_problem(old[0], element_kind, element) for element in new):
            return f"must hold only elements of type {element_kind.__name__}, like {old!r}"
    return ""


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list | tuple) else value


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, SyntaxError | KeyError) and error.args else error
    return " ".join(str(text).split()).rstrip(".") + "."
