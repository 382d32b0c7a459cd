"""Every array of every golden file is compared with something.

`read_by.json` says which test reads which array. Here: it leaves none out and names tests that exist. When one of these
tests passes, `tests/conftest.py` checks that it has really read its arrays; so the record cannot say more than is true.
"""

import ast

import pytest

from tests import golden_files

ROOT = golden_files.FOLDER.parents[1]
# {file: {what of it nothing can be compared with: why}}, in the form of the record.
NOT_COMPARED = {
    "distill/baselines": {
        **{
            f"{method}/param:Distillation/{scope}{i}/moving_{kind}": "the adapters' norms use the batch's statistics"
            for method, scope in (("ab", "criterion_alternative_L2/Map/connector_bn"), ("vid", "VID/vid0/bn"))
            for i in range(3)
            for kind in ("mean", "variance")
        }
    },
    "distill/kd_svd": dict.fromkeys(("vjp0_dU", "vjp1_dU"), "the published derivative leaves out the slope to U"),
    "anomaly/efficientnet_lite0_pretrained": {
        "image_name": "where the picture is from",
        "crop_top_left": "where the picture is from",
    },
    "fewshot/mamlpp_trajectory": {"inner_lr": "the rates of each step, which are used, are beside it"},
}

FAMILIES = sorted(path.name for path in golden_files.FOLDER.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def stored():
    return golden_files.names()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_array_is_left_out(stored, family):
    record = golden_files.record()
    unread = {}
    for file, arrays in stored.items():
        if file.startswith(f"{family}/"):
            read = set().union(*(golden_files.meant(entries, arrays) for entries in record.get(file, {}).values()))
            left = set(arrays) - read - NOT_COMPARED.get(file, {}).keys()
            unread |= {file: sorted(left)} if left else {}
    assert unread == {}


def test_exceptions_are_needed(stored):
    record = golden_files.record()
    for file, names in NOT_COMPARED.items():
        read = set().union(*(golden_files.meant(entries, stored[file]) for entries in record[file].values()))
        assert names.keys() <= set(stored[file]) - read, file


def test_record_names_only_what_there_is(stored):
    functions = {}
    for file, by in golden_files.record().items():
        assert file in stored
        for test, entries in by.items():
            for entry in entries:
                assert golden_files.meant([entry], stored[file]), (file, entry)
            module, _, name = test.partition("::")
            if module not in functions:
                tree = ast.parse((ROOT / module).read_text())
                functions[module] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert not name or name.partition("[")[0] in functions[module], test


def test_an_array_counts_when_it_is_subscripted():
    before = set(golden_files.READ)
    golden = golden_files.load("pruning", "inputs")
    assert "images" in golden
    assert sorted(golden) == ["images", "labels"]
    assert golden.get("nothing") is None
    with pytest.raises(TypeError, match="name the arrays"):
        golden.items()
    assert before == golden_files.READ
    golden.under("ima").mapped(len)["ges"]
    assert golden_files.READ - before <= {("pruning/inputs", "images")}
    assert ("pruning/inputs", "images") in golden_files.READ


def test_shortened_entries_stand_for_the_same():
    arrays = ["a/x", "a/y", "ab", "b/x", "b/y"]
    for wanted in ({"a/x", "a/y"}, {"a/x", "b/x", "b/y"}, set(arrays), {"ab"}, set()):
        entries = golden_files.shortened(wanted, arrays)
        assert golden_files.meant(entries, arrays) == wanted
    assert golden_files.shortened({"a/x", "a/y"}, arrays) == ["a/*"]
