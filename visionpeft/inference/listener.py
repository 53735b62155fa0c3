"""A Whisper as an adapter's training left it: language, task and timestamps are those that it was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from visionpeft.data.ahead import in_batches
from visionpeft.data.speech.audio import RATE, Audio
from visionpeft.data.speech.utterances import Timed, Utterances
from visionpeft.errors import DataError
from visionpeft.evaluation.speech.transcripts import Transcripts
from visionpeft.inference.about import SpeechAbout
from visionpeft.inference.transcribe_model import WhisperEars
from visionpeft.inference.transcribe_windows import read_window
from visionpeft.models.speech import SpeechBase
from visionpeft.progress import SILENT, Progress

Segment = Timed
"""Words with their time."""


@dataclass
class Listener:
    """A base with whatever adapters are active on it.

    Attributes:
        base: the model.
        about: language, task, timestamps.
    """

    base: SpeechBase
    about: SpeechAbout

    @property
    def writes(self) -> str | None:
        """Whisper's code of the language that it writes; None where it finds out clip by clip."""
        english = self.about.task == "translate" or not self.base.multilingual
        return "en" if english else self.about.language

    def texts(self, clips: Sequence[Audio], *, batch_size: int = 8, beams: int = 1) -> list[str]:
        """Return what is said in each clip of at most 30 s, 16 kHz; nothing where no sample is other than 0.

        Args:
            clips: float32 [samples] each.
            batch_size: clips at a time.
            beams: alternatives that are followed; 1 takes the likeliest token each time.

        Raises:
            ConfigError: the model does not know the language or the task.
            DataError: a clip is longer than the model hears at once.
        """
        ears = self._ears(beams)
        self._check_lengths(clips)
        audible = [place for place, clip in enumerate(clips) if clip.any()]
        batches = [
            [clips[place] for place in audible[start : start + batch_size]]
            for start in range(0, len(audible), batch_size)
        ]
        heard = [one for batch in batches for one in ears.heard(batch, timestamps=ears.timestamps)]
        texts = [""] * len(clips)
        for place, one in zip(audible, heard, strict=True):
            texts[place] = one.text([token for token in one.ids if token < one.first]).strip()
        return texts

    def transcripts(
        self,
        utterances: Utterances,
        *,
        batch_size: int = 8,
        beams: int = 1,
        label: str = "listening",
        progress: Progress = SILENT,
    ) -> Transcripts:
        """Return what is said in utterances beside their own texts.

        Args:
            utterances: of at most 30 s each.
            batch_size: utterances at a time.
            beams: see ``texts``.
            label: of the progress bar.
            progress: where it is shown.

        Raises:
            DataError: the sound of one cannot be read.
        """
        texts: list[str] = []
        spent = 0.0
        with progress.phase(label, len(utterances)) as bar:
            for clips in in_batches(utterances.audio, len(utterances), batch_size):
                begun = perf_counter()
                texts += self.texts(clips, batch_size=batch_size, beams=beams)
                spent += perf_counter() - begun
                bar.advance(len(clips))
        items = utterances.items
        columns = dict.fromkeys(name for item in items for name in item.columns)
        return Transcripts(
            names=tuple(item.name for item in items),
            references=tuple(item.text for item in items),
            hypotheses=tuple(texts),
            columns={name: tuple(item.columns.get(name, "") for item in items) for name in columns},
            audio_seconds=tuple(utterances.seconds(index) for index in range(len(items))),
            wall_seconds=spent,
        )

    def segments(self, clip: Audio) -> list[Segment]:
        """Return what is said in a clip of at most 30 s, 16 kHz, with its times; nothing where all samples are 0.

        Raises:
            ConfigError: the model does not know the language or the task.
            DataError: a clip is longer than the model hears at once.
        """
        self._check_lengths([clip])
        if not clip.any():
            return []
        (heard,) = self._ears(1).heard([clip], timestamps=True)
        return list(read_window(heard, len(clip) / RATE, last=True).segments)

    def _check_lengths(self, clips: Sequence[Audio]) -> None:
        most = round((self.base.window + 0.01) * RATE)  # less than one frame of features more is rounding
        for number, clip in enumerate(clips, 1):
            if len(clip) > most:
                raise DataError(
                    f"Clip {number} of {len(clips)}: {len(clip) / RATE:.2f} s, but '{self.base.id}' hears "
                    f"{self.base.window:g} s at once; transcribe longer sound with 'visionpeft transcribe'."
                )

    def _ears(self, beams: int) -> WhisperEars:
        about = self.about
        return WhisperEars(
            self.base, language=about.language, task=about.task, timestamps=about.timestamps, beams=beams
        )
