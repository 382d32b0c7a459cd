"""The slopes that tell whether a long run grows."""

import pytest

from benchmarks import soak


def test_slopes_are_of_the_second_half():
    rows = [
        {"seconds": 36.0 * i, "memory_kb": 1000 + (10 * i if i >= 5 else 0), "open_files": 9, "threads": 20}
        | {"compilations": min(i, 5), "lines_of_metrics": 2 * i}
        for i in range(10)
    ]
    found = soak.slopes(rows)
    assert found["memory_kb"] == {"per_hour": pytest.approx(1000), "first": 1050, "last": 1090}
    assert found["open_files"]["per_hour"] == pytest.approx(0)
    assert found["compilations"] == {"per_hour": pytest.approx(0, abs=1e-9), "first": 5, "last": 5}
    assert found["lines_of_metrics"]["per_hour"] == pytest.approx(200)
