"""CITATION.cff names the ten papers, as the table of methods has them."""

import yaml

from benchmarks.papers import METHODS
from tests.commands import ROOT


def test_every_method_has_its_reference():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert [reference["title"] for reference in citation["references"]] == [method.title for method in METHODS]
    for reference, method in zip(citation["references"], METHODS, strict=True):
        assert len(reference["authors"]) == len(method.authors)
        assert str(reference["year"]) == method.venue.split()[-1]
        found = [identifier["value"] for identifier in reference.get("identifiers", [])]
        assert found == ([f"arXiv:{method.arxiv}"] if method.arxiv else [])
