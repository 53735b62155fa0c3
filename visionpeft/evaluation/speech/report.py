"""One self-contained page about a speech model: figures, groups, and the worst utterances to listen to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionpeft import safefile
from visionpeft.evaluation.page import caution, drawn, fill_template
from visionpeft.evaluation.report_data import METRICS
from visionpeft.evaluation.speech.about import SpeechRunAbout
from visionpeft.evaluation.speech.figures import SpeechFigures
from visionpeft.evaluation.speech.players import sound_uri
from visionpeft.evaluation.speech.transcripts import Transcripts
from visionpeft.evaluation.speech.view import NORMALISED, between, group_chart, percent, shown_case, tiles

REPORT = "report.html"
_TERMS = 60

Sounds = Callable[[int], NDArray[np.float32]]
"""Index of an utterance -> its sound [samples], 16 kHz mono: ``Utterances.audio``."""


def write_speech_report(
    folder: Path,
    figures: SpeechFigures,
    transcripts: Transcripts,
    audio: Sounds,
    about: SpeechRunAbout,
    bare: SpeechFigures | None = None,
) -> Path:
    """Write ``folder/report.html`` and ``folder/metrics.json``; return the path of the page.

    The page needs nothing besides itself: the sound is inside, there is no script, and it forbids the browser to load
    anything.

    Args:
        folder: where they go; it exists.
        figures: what was measured of the transcripts.
        transcripts: all of them go into metrics.json.
        audio: returns the sound of an utterance by its index.
        about: facts about the run.
        bare: what was measured of the base alone on the same speech; None: it was not.

    Raises:
        DataError: the sound of an utterance cannot be read.
        OutputError: a file cannot be written.
    """
    page = render_speech(figures, audio, about, bare)
    metrics = json.dumps(metrics_of(figures, transcripts, about, bare), indent=2, ensure_ascii=False)
    safefile.write_atomically(folder / METRICS, [metrics.encode(), b"\n"])
    safefile.write_atomically(folder / REPORT, [page.encode()])
    return folder / REPORT


def metrics_of(
    figures: SpeechFigures, transcripts: Transcripts, about: SpeechRunAbout, bare: SpeechFigures | None = None
) -> dict[str, Any]:
    """Return what metrics.json holds: facts about the run, "figures", and under "texts" what was said and written.

    "base_figures" are those of the base alone, null where they were not measured.
    """
    rows = zip(transcripts.names, transcripts.references, transcripts.hypotheses, strict=True)
    texts = [{"name": name, "said": said, "written": written} for name, said, written in rows]
    alone = bare.model_dump(mode="json") if bare else None
    found = {"figures": figures.model_dump(mode="json"), "base_figures": alone, "texts": texts}
    return about.model_dump(mode="json") | found


def render_speech(
    figures: SpeechFigures, audio: Sounds, about: SpeechRunAbout, bare: SpeechFigures | None = None
) -> str:
    """Return the page as HTML; every text of the run is escaped."""
    charts = [group_chart(name, groups, figures) for name, groups in figures.groups.items()]
    return fill_template(
        "speech.html.jinja",
        figures=figures,
        about=about,
        caution=caution(about.part, "utterances"),
        bare=bare,
        tiles=tiles(figures, about, bare),
        normalised=NORMALISED,
        terms=figures.terms.by_term[:_TERMS] if figures.terms else (),
        charts=[drawn(chart) for chart in charts if chart is not None],
        cases=[shown_case(case, sound_uri(audio(case.index))) for case in figures.worst],
        percent=percent,
        between=between,
    )
