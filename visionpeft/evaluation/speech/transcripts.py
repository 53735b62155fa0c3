"""What was said beside what was written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from visionpeft.errors import DataError


@dataclass(frozen=True)
class Transcripts:
    """Utterances, their true texts and what a model wrote down; everything in one order.

    Attributes:
        names: of the utterances.
        references: what was said; "" where nothing was.
        hypotheses: what the model wrote.
        columns: further facts by column, a value each: {"speaker": ("anna", "ben", …)}.
        audio_seconds: how long each utterance is.
        wall_seconds: how long the model took for all of them together; 0 where not measured.

    Raises:
        DataError: lengths differ, or a duration is not positive.
    """

    names: tuple[str, ...]
    references: tuple[str, ...]
    hypotheses: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    audio_seconds: tuple[float, ...] = ()
    wall_seconds: float = 0.0

    def __post_init__(self) -> None:
        lists = {"references": self.references, "hypotheses": self.hypotheses, "audio_seconds": self.audio_seconds}
        for name, values in (lists | {f"column '{name}'": values for name, values in self.columns.items()}).items():
            if len(values) != len(self.names):
                raise DataError(f"transcripts: {len(self.names)} names and {len(values)} {name}: expected one of each.")
        for name, seconds in zip(self.names, self.audio_seconds, strict=True):
            if not seconds > 0:
                raise DataError(f"transcripts: '{name}' is {seconds} seconds long: expected more than 0.")

    def __len__(self) -> int:
        return len(self.names)


def joined(parts: Sequence[Transcripts]) -> Transcripts:
    """Return the transcripts of all parts in their order; a column that a part lacks is "" there.

    The time that the model took is that of the slowest part: they were made side by side.
    """
    columns = dict.fromkeys(name for part in parts for name in part.columns)
    return Transcripts(
        names=tuple(name for part in parts for name in part.names),
        references=tuple(text for part in parts for text in part.references),
        hypotheses=tuple(text for part in parts for text in part.hypotheses),
        columns={name: tuple(v for p in parts for v in p.columns.get(name, ("",) * len(p))) for name in columns},
        audio_seconds=tuple(seconds for part in parts for seconds in part.audio_seconds),
        wall_seconds=max(part.wall_seconds for part in parts),
    )
