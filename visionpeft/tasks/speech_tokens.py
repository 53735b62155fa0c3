"""What a text is to Whisper: a prompt that says what is wanted, the text's tokens, maybe times, and an end.

The model reads ``ids[:-1]`` and is to say ``ids[1:]`` of them; of the prompt it is given everything, so nothing there
counts (Radford et al. 2022, arXiv:2212.04356, §2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionpeft.data.speech.settings import WINDOW
from visionpeft.data.speech.utterances import Timed, Utterance
from visionpeft.errors import ConfigError, DataError, did_you_mean
from visionpeft.inference.about import SpeechAbout
from visionpeft.models.speech import SpeechBase

IGNORED = -100
"""A label that does not count."""
_TICK = 0.02  # seconds between two timestamps


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of a micro-batch, all of one length.

    Attributes:
        read: [N, L] long, what the decoder reads; behind a text's end the end again.
        said: [N, L] long, what it is to say next; ``IGNORED`` in the prompt and behind the end.
    """

    read: Tensor
    said: Tensor


class SpeechTokens:
    """Turns texts into tokens.

    Args:
        base: the model.
        about: language, task, timestamps.
        room: tokens that the decoder has room for; None: as many as it was made for.

    Attributes:
        prompt: the tokens that every text begins with.

    Raises:
        ConfigError: the model does not know the language or the task.
    """

    def __init__(self, base: SpeechBase, about: SpeechAbout, room: int | None = None) -> None:
        config: Any = base.model.generation_config
        self._tokenizer, self._about = base.tokenizer, about
        self._room = room or int(base.model.config.max_target_positions)
        self._end = int(config.eos_token_id)
        self._zero = int(config.no_timestamps_token_id) + 1
        self._ticks = int(base.model.config.vocab_size) - 1 - self._zero
        begin = [int(config.decoder_start_token_id)]
        if base.multilingual:
            begin += [int(config.lang_to_id[f"<|{_spoken(base, about)}|>"]), int(config.task_to_id[about.task])]
        else:
            _require_english(base, about)
        self.prompt = tuple(begin if about.timestamps else [*begin, self._zero - 1])

    def of(self, utterance: Utterance, seconds: float, stretch: float = 1.0) -> list[int]:
        """Return the tokens of an utterance: prompt, text, end.

        Args:
            utterance: its text, and the times of its parts where they are known.
            seconds: how long it is, as it was recorded.
            stretch: how many times longer it is now, as a change of speed makes it.

        Raises:
            DataError: its text is longer than the model can write.
        """
        if self._about.timestamps:
            parts = utterance.segments or (Timed(0.0, seconds, utterance.text),)
            body = [token for part in parts for token in self._timed(part, stretch)]
        else:
            body = self._text(utterance.text)
        ids = [*self.prompt, *body, self._end]
        if len(ids) - 1 > self._room:
            raise DataError(
                f"{utterance.name}: its text is {len(ids) - 1} tokens long, and the model has room for {self._room}: "
                "cut the recording into shorter ones."
            )
        return ids

    def batch(self, texts: Sequence[Sequence[int]], bucket: int) -> TokenBatch:
        """Return the tokens of texts, padded to a multiple of ``bucket``, or to all the room that there is."""
        longest = max(len(ids) for ids in texts) - 1
        length = min(-(-longest // bucket) * bucket, self._room)
        read = torch.full((len(texts), length), self._end)
        said = torch.full((len(texts), length), IGNORED)
        for row, ids in enumerate(texts):
            read[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            said[row, len(self.prompt) - 1 : len(ids) - 1] = torch.tensor(ids[len(self.prompt) :])
        return TokenBatch(read, said)

    def _text(self, text: str) -> list[int]:
        """A word of Whisper's begins with the space before it, the first one too; "<|…|>" in a text is only letters."""
        return self._tokenizer.encode(" " + text.strip(), add_special_tokens=False, split_special_tokens=True)

    def _timed(self, part: Timed, stretch: float) -> list[int]:
        return [self._tick(part.start * stretch), *self._text(part.text), self._tick(part.end * stretch)]

    def _tick(self, seconds: float) -> int:
        return self._zero + min(round(min(seconds, WINDOW) / _TICK), self._ticks)


def _spoken(base: SpeechBase, about: SpeechAbout) -> str:
    known = base.languages
    if about.language is None:
        raise ConfigError(f"'{base.id}' knows {len(known)} languages: say which one is spoken, language: en for one.")
    if about.language not in known:
        raise ConfigError(f"language '{about.language}' is none that '{base.id}' knows."
                          f"{did_you_mean(about.language, known)}")  # fmt: skip
    return about.language


def _require_english(base: SpeechBase, about: SpeechAbout) -> None:
    if about.language not in (None, "en") or about.task != "transcribe":
        raise ConfigError(f"'{base.id}' hears English alone and does not translate: leave language and translate away.")
