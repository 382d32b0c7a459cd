"""The better of several runs over categories, per category and metric: python -m anomaly.table --runs=A,B --out=FOLDER

Of a run at 256 pixels cropped to 224 and one at 256 this is what the paper calls CFA++. It is no model: the choice is
made on the test set.
"""

from pathlib import Path
from typing import Any

from absl import flags

from anomaly import summary
from anomaly.evaluation import METRICS
from common import tool
from common.errors import UserError


def best_of_runs(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """{category: {metric: largest value}} over the categories and metrics that all runs have."""
    metrics = [f"{before}{name}" for before in ("", "best_on_test_") for name in METRICS]
    categories = set.intersection(*(set(run) for run in runs))
    return {
        category: {
            name: max(run[category][name] for run in runs)
            for name in metrics
            if all(name in run[category] for run in runs)
        }
        for category in sorted(categories)
    }


def define_flags() -> None:
    """The flags of this program; not at import, because programs share names."""
    flags.DEFINE_list("runs", [], "Work directories of runs with --config.category=all, separated by commas.")
    flags.DEFINE_string("out", "", "Folder for table.md and table.csv.")


def main() -> None:
    values = flags.FLAGS
    if not values.runs or not values.out:
        raise UserError("give --runs=RUN[,RUN ...] and --out=FOLDER.")
    runs = [summary.read_results(Path(run)) for run in values.runs]
    for folder, run in zip(values.runs, runs, strict=True):
        if not run:
            raise UserError(f"--runs={folder} holds no finished category; train with --config.category=all first.")
    best = best_of_runs(runs)
    file = summary.write_categories(tool.new_folder(Path(values.out), "table.md"), best)
    print(file.read_text())


if __name__ == "__main__":
    define_flags()
    tool.run(main)
