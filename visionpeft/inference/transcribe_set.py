"""A set of utterances written down, beside what is said in them: what a report measures."""

from __future__ import annotations

import time

from visionpeft.data.speech.utterances import Utterances
from visionpeft.evaluation.speech.transcripts import Transcripts
from visionpeft.inference.transcribe import Ears
from visionpeft.progress import SILENT, Progress


def transcripts_of(
    ears: Ears,
    utterances: Utterances,
    *,
    batch_size: int = 8,
    label: str = "transcribing",
    progress: Progress = SILENT,
) -> Transcripts:
    """Return what a model writes of utterances of at most 30 s, beside their texts.

    Utterances of like length are heard together, since all wait for the longest text; reading sound is not in the time
    that is measured.

    Args:
        ears: the model, with the adapters that are active.
        utterances: at least one.
        batch_size: utterances at a time.
        label: of the progress bar.
        progress: where it is shown.

    Raises:
        DataError: the sound of an utterance cannot be read.
    """
    seconds = [utterances.seconds(place) for place in range(len(utterances))]
    order = sorted(range(len(utterances)), key=lambda place: -seconds[place])
    written: dict[int, str] = {}
    spent = 0.0
    with progress.phase(label, len(order)) as bar:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            clips = [utterances.audio(place) for place in part]
            begun = time.monotonic()
            for place, heard in zip(part, ears.heard(clips, timestamps=ears.timestamps), strict=True):
                written[place] = heard.text([token for token in heard.ids if token < heard.first]).strip()
            spent += time.monotonic() - begun
            bar.advance(len(part))
    items = utterances.items
    names = sorted({name for item in items for name in item.columns})
    return Transcripts(
        names=tuple(item.name for item in items),
        references=tuple(item.text for item in items),
        hypotheses=tuple(written[place] for place in range(len(items))),
        columns={name: tuple(item.columns.get(name, "") for item in items) for name in names},
        audio_seconds=tuple(seconds),
        wall_seconds=spent,
    )
