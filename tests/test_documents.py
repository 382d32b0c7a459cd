"""Every relative link of every page leads somewhere, and every command that a page prints names what exists."""

import re

import pytest

from tests import commands

ROOT = commands.ROOT
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/*.md"))
    if not {"runs", "node_modules"} & set(path.relative_to(ROOT).parts)
)
FAMILIES = ("anomaly", "distill", "fer", "fewshot", "multitask", "pruning", "vit_small")
WITH_COMMANDS = [
    *PAGES,
    *(
        path.relative_to(ROOT)
        for folder in ("*/configs", "benchmarks", "notebooks")
        for path in ROOT.glob(f"{folder}/*.py")
    ),
]


def test_all_pages_are_found():
    assert {"README.md", "fewshot/README.md", "common/models/README.md"} <= set(map(str, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        path = target.partition("#")[0]
        if path and "://" not in path:
            assert (ROOT / page).parent.joinpath(path).exists(), target


@pytest.mark.parametrize("family", FAMILIES)
def test_pages_of_families_have_the_same_headings(family):
    headings = re.findall(r"^## (.*)$", (ROOT / family / "README.md").read_text(), re.MULTILINE)
    assert headings == [
        "What the paper does",
        "Equations and where they are",
        "Run it",
        "Your own data",
        "Results",
        "Differences from the paper and the official code",
        "Provenance",
    ]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=str)
def test_commands(page):
    for words in commands.find((ROOT / page).read_text()):
        try:
            commands.check(words)
        except AssertionError as error:
            raise AssertionError(f"{' '.join(words)}: {error}") from error


@pytest.mark.parametrize(
    "command",
    [
        "python -m fewshot.main --config=fewshot/configs/no.py",
        "python -m fewshot.main --config=fewshot/configs/maml.py:no",
        "python -m fewshot.main --config=fewshot/configs/maml.py --config.no.field=1",
        "python -m fewshot.main --config=fewshot/configs/maml.py --no_flag=1",
        "python -m fewshot.no --config=fewshot/configs/maml.py",
    ],
)
def test_what_does_not_exist_is_found_in_a_text(command):
    (words,) = commands.find(f"Run it by `{command}`, or not.")
    with pytest.raises((AssertionError, ValueError)):
        commands.check(words)
