"""Commands as documents print them: whether what they name exists."""

import importlib.util
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACEHOLDER = re.compile(r"[A-Z]{3,}|\.\.\.|[*<>]")  # METHOD, NAME, ...: to be filled in by the reader


def get_config(file: str, variant: str = ""):
    """The config of a file in this repository."""
    return importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config(variant)


def assert_fields(config, paths: Iterable[str]) -> None:
    """Every dotted path is a field of the config."""
    fields = config.to_dict()
    for path in paths:
        place: Mapping = fields
        for name in path.split("."):
            assert name in place, f"config.{path}"
            place = place[name]


def find(text: str) -> Iterator[list[str]]:
    """The words of every `python -m ...` in a text, whether a line of its own, in backquotes, or behind a label."""
    text = re.sub(r"\\\n\s*", "", text)  # continued lines
    text = re.sub(r"(`[^`\n]*)\n([^`\n]*`)", r"\1 \2", text)  # in backquotes over two lines
    for found in re.finditer(r"python -m (benchmarks|[a-z_]+\.)[^`\n]*", text):
        command = re.sub(r"  +\(.*|;.*", "", found[0])
        if command.count('"') % 2:  # the end of the quotes that it stands in
            command = command.rpartition('"')[0]
        yield [word.rstrip(",.:") for word in shlex.split(command, comments=True)]


def check(words: list[str]) -> None:
    """Module, config file, variant, fields and flags of a command exist. Raises AssertionError."""
    module = words[2]
    if PLACEHOLDER.search(module):
        return
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    own = Path(spec.origin).read_text()
    imports = re.findall(r"^ *from (\S+) import ([\w, ]*)", own, re.MULTILINE)
    imported = {f"{place}/{name.strip()}" for place, names in imports for name in ("", *names.split(","))}
    files = [ROOT / f"{name.rstrip('/').replace('.', '/')}.py" for name in sorted(imported)]
    known = own + "".join(file.read_text() for file in files if file.is_file())
    config = None
    for word in words[3:]:
        flag, _, value = word.partition("=")
        if flag == "--config":
            if PLACEHOLDER.search(value):
                return
            file, _, variant = value.partition(":")
            assert (ROOT / file).is_file(), file
            config = get_config(file, variant)
        elif flag.startswith("--config."):
            assert config is not None, "a field before the config"
            assert_fields(config, [flag.removeprefix("--config.")])
        elif flag.startswith("--"):
            assert re.search(rf'"(--)?{re.escape(flag[2:])}"', known), flag
