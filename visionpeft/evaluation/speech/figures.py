"""All figures of transcripts as one value that JSON can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, field_validator

from visionpeft.errors import DataError
from visionpeft.evaluation.speech.alignment import Alignment, Step, aligned_characters, aligned_words
from visionpeft.evaluation.speech.failures import Failure, FailureFigures, failure_figures, failure_of, strangeness
from visionpeft.evaluation.speech.groups import MOST_VALUES, Group, columns_of, groups_of
from visionpeft.evaluation.speech.normalise import NORMALISATIONS, Normalisation, normaliser
from visionpeft.evaluation.speech.rates import Draw, Errors, Rate, errors_of
from visionpeft.evaluation.speech.terms import TermCounts, TermsFigures
from visionpeft.evaluation.speech.transcripts import Transcripts

_CONFUSIONS = 20


class SpeechReportConfig(BaseModel):
    """What is measured, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: str | None = Field(
        default=None, description="Of the texts, as Whisper's code of it: en, mr, …; null: not known."
    )
    normalisation: Normalisation = Field(
        default="marks", description="How texts are compared in tables and worst cases: raw, whisper or marks."
    )
    terms: tuple[str, ...] = Field(default=(), description="Domain terms whose recall and precision are measured.")
    by: tuple[str, ...] | None = Field(
        default=None,
        description='Columns to report by, "length" among them; null: every one of 2 to 50 values.',
    )
    lengths: tuple[float, ...] = Field(
        default=(2.0, 5.0, 10.0, 20.0), description="Where the length classes meet, in seconds."
    )
    worst: int = Field(default=20, ge=0, le=500, description="Worst utterances that are shown, with their sound.")
    base: bool = Field(
        default=True,
        description="Let the base write down the same speech without the adapter: what the adapter changed.",
    )
    resamples: int = Field(
        default=500, ge=0, le=100_000, description="Resamples of the utterances for intervals; 0 gives no intervals."
    )
    level: float = Field(default=0.95, gt=0.5, lt=1.0, description="Share of the resamples within an interval.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of the resamples.")

    @field_validator("lengths")
    @classmethod
    def _ascending(cls, lengths: tuple[float, ...]) -> tuple[float, ...]:
        if any(edge <= 0 for edge in lengths) or list(lengths) != sorted(set(lengths)):
            raise ValueError("should be seconds above 0, each more than the one before")
        return lengths


class Rates(BaseModel):
    """Error rates of words and of characters after one normalisation."""

    model_config = ConfigDict(frozen=True)

    wer: Rate
    cer: Rate


class Confusion(BaseModel):
    """A word that was written in place of another; one of them is "" where it was left out or put in."""

    model_config = ConfigDict(frozen=True)

    said: str
    written: str
    count: int


class Case(BaseModel):
    """An utterance that went wrong.

    Attributes:
        index: its place in the transcripts.
        name: its name.
        seconds: of sound.
        errors: wrong words.
        words: words that were said.
        failure: how it failed, if it did: "repetition", "silence", "inserted", "unrelated".
        reference: what was said, as it is.
        hypothesis: what was written, as it is.
        steps: the alignment: (kind, what was said, what was written).
    """

    model_config = ConfigDict(frozen=True)

    index: int
    name: str
    seconds: float
    errors: int
    words: int
    failure: Failure | None
    reference: str
    hypothesis: str
    steps: tuple[tuple[str, str, str], ...]


class SpeechFigures(BaseModel):
    """What was measured.

    Attributes:
        utterances: how many.
        audio_seconds: of sound together.
        wall_seconds: that the model took; 0 where not measured.
        real_time_factor: wall seconds by audio seconds: below 1 is faster than speech. None where not measured.
        language: of the texts; None where not known.
        normalisation: the one of tables, confusions and worst cases.
        level: share of the resamples within the intervals.
        rates: by normalisation.
        terms: recall and precision of domain terms; None without terms.
        failures: hallucinations and repetitions.
        groups: by column, the rates of its values.
        confusions: the most frequent ones.
        worst: the utterances with most wrong words, the worst first.
        notes: what a reader should know, one line each.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    utterances: int
    audio_seconds: float
    wall_seconds: float
    real_time_factor: float | None
    language: str | None
    normalisation: Normalisation
    level: float
    rates: dict[Normalisation, Rates]
    terms: TermsFigures | None
    failures: FailureFigures
    groups: dict[str, tuple[Group, ...]]
    confusions: tuple[Confusion, ...]
    worst: tuple[Case, ...]
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> Rates:
        """The rates after the normalisation of the tables."""
        return self.rates[self.normalisation]


@dataclass(frozen=True)
class _Compared:
    """Transcripts after one normalisation."""

    said: list[str]
    written: list[str]
    words: list[Alignment]
    wer: Errors
    cer: Errors

    @staticmethod
    def of(transcripts: Transcripts, name: Normalisation, language: str | None) -> _Compared:
        change = normaliser(name, language)
        said, written = ([change(text) for text in texts] for texts in (transcripts.references, transcripts.hypotheses))
        words = aligned_words(said, written)
        return _Compared(said, written, words, errors_of(words), errors_of(aligned_characters(said, written)))


def speech_figures(transcripts: Transcripts, config: SpeechReportConfig | None = None) -> SpeechFigures:
    """Return all figures of transcripts.

    Args:
        transcripts: of utterances that nothing was learned or chosen from.
        config: what is measured, and how.

    Raises:
        DataError: there are no utterances.
        ConfigError: a column that is not there, or terms that cannot be used.
        MissingExtraError: jiwer is not installed.
    """
    config = config or SpeechReportConfig()
    if not len(transcripts):
        raise DataError("there are no utterances to measure.")
    draw = Draw(resamples=config.resamples, level=config.level, seed=config.seed)
    compared: dict[Normalisation, _Compared] = {
        name: _Compared.of(transcripts, name, config.language) for name in NORMALISATIONS
    }
    rates: dict[Normalisation, Rates] = {
        name: Rates(wer=part.wer.rate(draw), cer=part.cer.rate(draw)) for name, part in compared.items()
    }
    terms = TermCounts(transcripts.references, transcripts.hypotheses, config.terms) if config.terms else None
    main, failures = compared[config.normalisation], _failures(compared)
    columns, left_out = columns_of(transcripts, config.by, config.lengths)
    errors, seconds = {"wer": main.wer, "cer": main.cer}, float(sum(transcripts.audio_seconds))
    found = terms.figures(draw) if terms else None
    return SpeechFigures(
        utterances=len(transcripts),
        audio_seconds=seconds,
        wall_seconds=transcripts.wall_seconds,
        real_time_factor=transcripts.wall_seconds / seconds if transcripts.wall_seconds else None,
        language=config.language,
        normalisation=config.normalisation,
        level=config.level,
        rates=rates,
        terms=found,
        failures=failure_figures(failures),
        groups={name: groups_of(name, values, transcripts, errors, terms, draw) for name, values in columns.items()},
        confusions=_confusions(main.words),
        worst=_worst(transcripts, main, failures, config.worst),
        notes=tuple(_notes(transcripts, found, left_out)),
    )


def _failures(compared: Mapping[Normalisation, _Compared]) -> list[Failure | None]:
    pairs = (compared["marks"], compared["whisper"])
    strange = [strangeness(pair.said, pair.written) for pair in pairs]
    least = [min(values) for values in zip(*strange, strict=True)]
    return [failure_of(words, value) for words, value in zip(compared["marks"].words, least, strict=True)]


def _confusions(alignments: Sequence[Alignment]) -> tuple[Confusion, ...]:
    counted: Counter[tuple[str, str]] = Counter()
    for alignment in alignments:
        for step in alignment:
            if step.kind != "equal":
                counted.update(_pairs(step))
    order = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:_CONFUSIONS]
    return tuple(Confusion(said=said, written=written, count=count) for (said, written), count in order)


def _pairs(step: Step) -> list[tuple[str, str]]:
    said = step.reference or ("",) * len(step.hypothesis)
    return list(zip(said, step.hypothesis or ("",) * len(said), strict=True))


def _worst(
    transcripts: Transcripts, compared: _Compared, failures: Sequence[Failure | None], count: int
) -> tuple[Case, ...]:
    errors, totals = compared.wer.errors.tolist(), compared.wer.totals.tolist()
    order = sorted(range(len(transcripts)), key=lambda i: (-errors[i], totals[i], i))
    return tuple(
        Case(
            index=i,
            name=transcripts.names[i],
            seconds=transcripts.audio_seconds[i],
            errors=errors[i],
            words=totals[i],
            failure=failures[i],
            reference=transcripts.references[i],
            hypothesis=transcripts.hypotheses[i],
            steps=tuple((s.kind, " ".join(s.reference), " ".join(s.hypothesis)) for s in compared.words[i]),
        )
        for i in order[:count]
        if errors[i]
    )


def _notes(transcripts: Transcripts, terms: TermsFigures | None, left_out: Sequence[str]) -> list[str]:
    notes: list[str] = []
    if empty := sum(not text.strip() for text in transcripts.references):
        notes.append(f"Utterances without a text: {empty}. Whatever is written for them counts as insertions.")
    if left_out:
        notes.append(f"No table by {', '.join(left_out)}: more than {MOST_VALUES} values. Name it in 'by' to have it.")
    if terms and terms.unused:
        named = ", ".join(terms.unused[:10]) + (" …" if len(terms.unused) > 10 else "")
        notes.append(f"Terms that were neither said nor written: {len(terms.unused)} ({named}).")
    return notes
