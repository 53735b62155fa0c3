"""The page and the JSON file about a classifier's test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionpeft import safefile
from visionpeft.evaluation.classification import view
from visionpeft.evaluation.classification.about import RunAbout
from visionpeft.evaluation.classification.figures import ClassificationFigures, classification_figures
from visionpeft.evaluation.classification.mistakes import Mistake, mistakes
from visionpeft.evaluation.classification.operating import Held
from visionpeft.evaluation.classification.predictions import Predictions
from visionpeft.evaluation.classification.settings import ReportConfig
from visionpeft.evaluation.classification.statistics import Scored
from visionpeft.evaluation.page import Chart, caution, drawn, fill_template, picture_uri, spell_bytes

REPORT, METRICS = "report.html", "metrics.json"
_SIDE = 256

_PLAIN = ReportConfig()


@dataclass(frozen=True)
class Shown:
    """A picture to show with an error, and the maps over it that were made.

    Attributes:
        picture: as the model saw it.
        heat: what spoke for the class that is explained.
        flow: how much of each place attention brought into the answer.
    """

    picture: Image.Image
    heat: Image.Image | None = None
    flow: Image.Image | None = None


Pictures = Callable[[Sequence[Mistake]], Sequence[Shown]]
"""From errors to their pictures, in order: it may explain them all in one batch."""


@dataclass(frozen=True)
class _Card:
    mistake: Mistake
    explained: str
    picture: str
    heat: str
    flow: str


def write_classification_report(
    folder: Path,
    test: Predictions,
    validation: Predictions | None = None,
    *,
    about: RunAbout,
    config: ReportConfig = _PLAIN,
    pictures: Pictures | None = None,
    held: Held | None = None,
) -> Path:
    """Measure predictions, write ``report.html`` and ``metrics.json`` into a folder, and return the page's path.

    The page needs nothing besides itself: pictures are inside, there is no script, and it forbids the browser to load
    anything.

    Args:
        folder: it exists; files of these names are replaced, each whole or not at all.
        test: what is reported.
        validation: what thresholds and temperature are chosen on; None where there is none.
        about: facts of the run.
        config: what is measured.
        pictures: gives the pictures of errors; None shows their names alone.
        held: thresholds and temperature of the adapter, taken where there is no validation.

    Raises:
        DataError: the predictions do not fit together, or a subgroup's column is missing.
        OutputError: a file cannot be written.
    """
    figures = classification_figures(test, validation, config, held)
    page = render_classification(figures, test, about=about, config=config, pictures=pictures)
    facts = about.model_dump(mode="json") | {"after": figures.flat()}
    told = facts | {"figures": figures.model_dump(mode="json"), "report": config.model_dump(mode="json")}
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    safefile.write_atomically(folder / METRICS, [text.encode()])
    safefile.write_atomically(folder / REPORT, [page.encode()])
    return folder / REPORT


def render_classification(
    figures: ClassificationFigures,
    test: Predictions,
    *,
    about: RunAbout,
    config: ReportConfig = _PLAIN,
    pictures: Pictures | None = None,
) -> str:
    """Return the page as HTML; every text is escaped. Arguments as of `write_classification_report`."""
    thresholds = [part.operating_point.threshold for part in figures.classes if part.operating_point]
    errors = mistakes(Scored(test, np.array(thresholds)), config.mistakes)
    by_class = view.class_chart(figures)
    return fill_template(
        "classification.html.jinja",
        about=about,
        figures=figures,
        lead=_lead(figures, about),
        tiles=view.tiles(figures, about),
        notes=[*figures.notes, *about.warnings, *(f"Leak: {leak}" for leak in about.leaks)],
        point_words=_point_words(figures),
        interval_words=_interval_words(figures),
        charts=[drawn(chart) for chart in view.charts(figures, test)],
        class_chart=_maybe(by_class),
        subgroups=[(table, _maybe(view.subgroup_chart(table, figures))) for table in figures.subgroups],
        galleries=_galleries(errors, test, pictures),
        metrics=view.METRICS,
        class_metrics=view.CLASS_METRICS,
        subgroup_metrics=view.SUBGROUP_METRICS,
        smallest=config.smallest_group,
        spelt=view.spell_figure,
        adapter=_adapter(about),
    )


def _galleries(
    errors: dict[str, list[Mistake]], test: Predictions, pictures: Pictures | None
) -> list[tuple[str, list[_Card]]]:
    every = list({mistake.row: mistake for found in errors.values() for mistake in found}.values())
    shown = dict(zip([m.row for m in every], pictures(every), strict=True)) if pictures is not None and every else {}
    return [(title, [_card(m, test, shown.get(m.row)) for m in found]) for title, found in errors.items()]


def _card(mistake: Mistake, test: Predictions, shown: Shown | None) -> _Card:
    picture = picture_uri(shown.picture, _SIDE) if shown else ""
    heat = picture_uri(shown.heat, _SIDE) if shown and shown.heat else ""
    flow = picture_uri(shown.flow, _SIDE) if shown and shown.flow else ""
    return _Card(mistake, test.labels[mistake.label], picture, heat, flow)


def _maybe(chart: Chart | None) -> tuple[Chart, Any] | None:
    return drawn(chart) if chart is not None else None


def _lead(figures: ClassificationFigures, about: RunAbout) -> str:
    kind = {
        "binary": f"It tells '{figures.labels[-1]}' from '{figures.labels[0]}'",
        "multiclass": f"It tells {len(figures.labels)} classes apart",
        "ordinal": f"It tells {len(figures.labels)} ordered grades apart",
        "multilabel": f"It says for each of {len(figures.labels)} labels whether it is there",
    }[figures.kind]
    of = f" of {figures.patients:,} patients" if figures.patients is not None else ""
    if warning := caution(about.part):
        return f"{kind}. Measured on {figures.count:,} pictures{of}.{warning}"
    return f"{kind}. Measured on {figures.count:,} test pictures{of}, which nothing was chosen on."


def _point_words(figures: ClassificationFigures) -> str:
    rest = {
        "binary": "Accuracy, F1 and the confusion matrix are at this threshold.",
        "multilabel": "Accuracy and F1 are at these thresholds.",
    }.get(
        figures.kind, "Each class against the others; accuracy, F1 and the confusion matrix take the likeliest class."
    )
    points = [part.operating_point for part in figures.classes if part.operating_point is not None]
    rule = next((point.rule for point in points if point.chosen_on == "validation"), "")
    if any(point.chosen_on == "adapter" for point in points):
        where = "The validation pictures of the adapter's training decided"
    else:
        where = f'The validation pictures decided by the rule "{rule}"' if rule else "No pictures decided"
    return f"{where} from which probability on the answer is yes; the figures are of the test pictures. {rest}"


def _interval_words(figures: ClassificationFigures) -> str:
    if not figures.resamples:
        return "No intervals were asked for."
    by_class = "" if figures.kind == "multilabel" else ", as many of each class in each"
    return (
        f"Small numbers are {100 * figures.level:g} % intervals of {figures.resamples:,} bootstrap resamples of the "
        f"{figures.resampled}{by_class}. An asterisk has a remark: point at it."
    )


def _adapter(about: RunAbout) -> dict[str, Any]:
    share = about.trainable_share
    facts = {
        "method": about.method,
        **about.adapter,
        "trained numbers": about.trainable_parameters,
        "share of the model": "" if share is None else f"{100 * share:.3g} %",
        "file": spell_bytes(about.adapter_bytes) if about.adapter_bytes else "",
        "peak memory": spell_bytes(about.peak_memory) if about.peak_memory else "",
    }
    return {name: value for name, value in facts.items() if value not in ("", 0, None)}
