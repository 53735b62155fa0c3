"""What the folds of a cross-validation come to together: each figure of every fold, their mean and their spread."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionpeft import __version__, safefile
from visionpeft.delivery.result import RunResult

if TYPE_CHECKING:
    from visionpeft.config import ClassifyRun

METRICS, REPORT, CONFIG = "metrics.json", "report.html", "config.yaml"


def join(config: ClassifyRun, results: Sequence[RunResult]) -> RunResult:
    """Write what the folds come to: ``metrics.json``, ``report.html`` with the way to each fold's own, ``config.yaml``.

    Args:
        config: of the whole.
        results: of the folds, in order.

    Returns:
        The means, without an adapter: each fold has its own.

    Raises:
        OutputError: a file cannot be written.
    """
    from visionpeft.config import dump

    rows = [result.metrics for result in results]
    means, spreads = mean_and_spread(rows)
    folder = config.output
    told = {
        "folds": rows,
        "mean": means,
        "spread": spreads,
        "task": config.task,
        "program": f"visionpeft {__version__}",
    }
    safefile.write_atomically(folder / METRICS, [json.dumps(told, indent=1).encode()])
    safefile.write_atomically(folder / CONFIG, [dump(config).encode()])
    page = render(folder, results, means, spreads)
    safefile.write_atomically(folder / REPORT, [page.encode()])
    return RunResult(None, None, {}, folder / REPORT, means)


def mean_and_spread(rows: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return mean and sample standard deviation of each figure that all folds have."""
    shared = [name for name in rows[0] if all(name in row and math.isfinite(row[name]) for row in rows)]
    means = {name: statistics.fmean(row[name] for row in rows) for name in shared}
    return means, {name: statistics.stdev(row[name] for row in rows) for name in shared}


def render(folder: Path, results: Sequence[RunResult], means: dict[str, float], spreads: dict[str, float]) -> str:
    """Return the page as HTML; every text is escaped."""
    from visionpeft.evaluation.page import fill_template

    reports = [result.report.resolve().relative_to(folder.resolve()).as_posix() for result in results]
    return fill_template(
        "folds.html.jinja",
        title=folder.resolve().name,
        program=f"visionpeft {__version__}",
        reports=reports,
        rows=[(name, [result.metrics[name] for result in results], means[name], spreads[name]) for name in means],
    )
