"""One self-contained page about a detector: figures, curves, and pictures of what it hits, misses and makes up."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from visionpeft import safefile
from visionpeft.evaluation.detection.about import DetectionAbout
from visionpeft.evaluation.detection.charts import detection_charts, detection_tiles
from visionpeft.evaluation.detection.detections import Evaluation
from visionpeft.evaluation.detection.figures import DetectionFigures, DetectionReportConfig, Held, detection_figures
from visionpeft.evaluation.detection.sheets import Case, Pictures, case_picture, cases, worst_sheet
from visionpeft.evaluation.page import caution, drawn, fill_template
from visionpeft.evaluation.report_data import METRICS

REPORT = "report.html"
_WORST, _CASES = 6, 10

_GROUPS = (
    ("misses", "Misses", "Objects that no detection of their class and of enough confidence lies on."),
    ("alarms", "False alarms", "The surest detections where no object of their class is."),
    ("hits", "Least sure hits", "Objects that were found, by little."),
)


@dataclass(frozen=True)
class CaseGroup:
    """Some hits, misses or false alarms, (picture as a data URI, words, photograph) each, and how many in all."""

    title: str
    meaning: str
    pictures: list[tuple[str, str, str]]
    total: int


def write_detection_report(
    folder: Path,
    *,
    test: Evaluation,
    validation: Evaluation | None,
    pictures: Pictures,
    about: DetectionAbout,
    config: DetectionReportConfig | None = None,
    held: Held | None = None,
) -> Path:
    """Write ``folder/report.html`` and ``folder/metrics.json``; return the path of the page.

    The page needs nothing besides itself: pictures are inside, there is no script, and it forbids the browser to
    load anything.

    Args:
        folder: where they go; it exists.
        test: what is there and what was found on the test pictures.
        validation: the same on validation pictures; None: the threshold is not chosen.
        pictures: returns the photograph of a test picture by its index: ``LabelledScenes.image``.
        about: facts about the run.
        config: how the threshold is chosen, and how many resamples there are.
        held: the threshold that is taken where the settings give none and there is no validation.

    Raises:
        DataError: a photograph cannot be read.
        OutputError: a file cannot be written.
    """
    figures = detection_figures(test, validation, config, held)
    metrics = json.dumps(metrics_of(figures, about), indent=2, ensure_ascii=False)
    page = render_detection(figures, about, test, pictures)
    safefile.write_atomically(folder / METRICS, [metrics.encode(), b"\n"])
    safefile.write_atomically(folder / REPORT, [page.encode()])
    return folder / REPORT


def metrics_of(figures: DetectionFigures, about: DetectionAbout) -> dict[str, Any]:
    """Return what metrics.json holds: the facts about the run, and under "figures" what was measured."""
    return about.model_dump(mode="json") | {"figures": figures.model_dump(mode="json")}


def render_detection(figures: DetectionFigures, about: DetectionAbout, test: Evaluation, pictures: Pictures) -> str:
    """Return the page as HTML; every text of the run is escaped."""
    return fill_template(
        "detection.html.jinja",
        figures=figures,
        about=about,
        caution=caution(about.part),
        tiles=detection_tiles(figures, about),
        charts=[drawn(chart) for chart in detection_charts(figures)],
        worst=jpeg_uri(worst_sheet(test, pictures, figures.threshold, count=_WORST)),
        shown=min(_WORST, len(test)),
        groups=case_groups(test, pictures, figures.threshold),
        total_seconds=sum(about.seconds.values()),
    )


def case_groups(test: Evaluation, pictures: Pictures, threshold: float) -> list[CaseGroup]:
    """Return misses, false alarms and the least sure hits as small pictures; kinds that do not occur are left out."""
    found = cases(test, threshold)
    groups = [
        CaseGroup(title, meaning, [_shown(test, pictures, case) for case in spread(found[kind])], len(found[kind]))
        for kind, title, meaning in _GROUPS
    ]
    return [group for group in groups if group.total]


def spread(found: Sequence[Case], count: int = _CASES) -> list[Case]:
    """Return ``count`` cases in their order, from as many pictures as there are: no picture takes all the places."""
    rank: dict[int, int] = {}
    order: list[tuple[int, int, Case]] = []
    for place, case in enumerate(found):
        rank[case.index] = rank.get(case.index, -1) + 1
        order.append((rank[case.index], place, case))
    chosen = sorted(order, key=lambda item: item[:2])[:count]
    return [case for _, _, case in sorted(chosen, key=lambda item: item[1])]


def jpeg_uri(image: Image.Image) -> str:
    """Return a picture as ``data:`` text."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=86, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shown(test: Evaluation, pictures: Pictures, case: Case) -> tuple[str, str, str]:
    return (
        jpeg_uri(case_picture(pictures(case.index), case)),
        case.drawn.text,
        PurePosixPath(test.scenes[case.index].name).name,
    )
