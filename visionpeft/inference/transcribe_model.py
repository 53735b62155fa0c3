"""Whisper in use: sound in, tokens with timestamps out, with any adapters on it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from visionpeft.adapters.archive import Adapter
from visionpeft.data.speech.audio import RATE, Audio
from visionpeft.errors import AdapterError, BaseModelError, ConfigError, did_you_mean
from visionpeft.inference.about import SpeechAbout
from visionpeft.inference.transcribe_windows import Heard, steady
from visionpeft.models.quiet import without_reports
from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from visionpeft.adapters.manager import AdapterManager
    from visionpeft.models.speech import SpeechBase

TASKS = ("transcribe", "translate")
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""At which a clip is written anew where the text goes round in circles."""

NO_SPEECH, DOUBTFUL = 0.6, -1.0
"""A clip is silent where Whisper's own token for that is likelier than the one at its text's beginning, and the mean
log-likelihood of what was written is below the other (section 4.5 of Whisper's paper), or the sound is steady."""

_SILENT = ("<|nospeech|>", "<|nocaptions|>")
"""What that token is called."""

_TOLD = "visionpeft"
"""Where a merged model's generation settings say what its adapters were trained for."""

_COMPRESSIBLE = 2.4
"""How many times shorter zlib makes a text that goes round in circles, at least."""


class WhisperEars:
    """A Whisper with the adapters that are active on it.

    Of a clip in which nobody speaks it writes nothing, as far as the model can tell that.

    Args:
        base: the model.
        language: Whisper's code of what is spoken; None: found out window by window. "en" for English-only models.
        task: "transcribe", or "translate" into English.
        timestamps: whether it writes when segments begin and end.
        beams: alternatives that are followed; 1 takes the likeliest token each time.
        fallback: write a clip anew, by chance at rising temperatures, where the text goes round in circles (section 4.5
            of Whisper's paper); the same clip gives the same text whatever is beside it.

    Raises:
        ConfigError: the model cannot do it.
    """

    def __init__(
        self,
        base: SpeechBase,
        *,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = True,
        beams: int = 1,
        fallback: bool = False,
    ) -> None:
        self._base, self._beams, self._fallback = base, beams, fallback
        self._config: Any = base.model.generation_config
        self.base_id = base.id
        self.timestamps, self.task = timestamps, task
        self.language = language if base.multilingual else "en"
        known = base.tokenizer.get_added_vocab()
        self._silent: int | None = next((known[name] for name in _SILENT if name in known), None)
        self._check(language)

    def _check(self, language: str | None) -> None:
        known = self._languages()
        if self.task not in TASKS:
            raise ConfigError(f"--task '{self.task}': one of {', '.join(TASKS)}.{did_you_mean(self.task, TASKS)}")
        if not self._base.multilingual:
            if language not in (None, "en") or self.task != "transcribe":
                raise ConfigError(f"'{self.base_id}' hears English alone: leave --language and --task away.")
        elif language is not None and language not in known:
            raise ConfigError(f"--language '{language}' is none that Whisper knows.{did_you_mean(language, known)}")

    def _languages(self) -> dict[str, int]:
        table: dict[str, int] = getattr(self._config, "lang_to_id", None) or {}
        return {name.strip("<|>"): token for name, token in table.items()}

    @property
    def window(self) -> float:
        """Seconds that the model hears at once."""
        return self._base.window

    @torch.no_grad()
    def heard(self, clips: Sequence[Audio], *, timestamps: bool) -> list[Heard]:
        """Return what it writes of each clip of at most 30 s at 16 kHz."""
        model: Any = self._base.model
        like: Tensor = model.model.encoder.embed_positions.weight
        made = self._base.features(list(clips), sampling_rate=RATE, return_tensors="pt")
        features: Tensor = made["input_features"].to(like.device, like.dtype)
        encoded = model.get_encoder()(features)
        start = torch.full((len(features), 1), int(self._config.decoder_start_token_id), device=like.device)
        first: Tensor = model(encoder_outputs=encoded, decoder_input_ids=start).logits[:, -1].float()
        prompt = self._prompt(first, timestamps=timestamps)
        written = self._ids(encoded, prompt, timestamps=timestamps)
        if self._fallback:
            for place in [place for place, ids in enumerate(written) if self._circles(ids)]:
                written[place] = self._anew(_one(encoded, place), prompt, place, written[place], timestamps=timestamps)
        for place in self._maybe_silent(first):
            likelihood = self._likelihood(_one(encoded, place), prompt[place], written[place])
            if likelihood < DOUBTFUL or steady(clips[place]):
                written[place] = []
        names = self._named(prompt)
        return [Heard(ids, self._first, self._text, name) for ids, name in zip(written, names, strict=True)]

    def _named(self, prompt: Tensor) -> list[str | None]:
        """The languages that prompts [N, p] name, as codes."""
        if not self._base.multilingual:
            return [self.language] * len(prompt)
        names = {token: name for name, token in self._languages().items()}
        return [names[int(token)] for token in prompt[:, 1]]

    def _maybe_silent(self, first: Tensor) -> list[int]:
        """Places of clips of which the model, asked for a text's first token [N, words], says that nobody speaks."""
        if self._silent is None:
            return []
        return [int(place) for place in (first.softmax(1)[:, self._silent] > NO_SPEECH).nonzero()[:, 0]]

    def _likelihood(self, alone: Any, prompt: Tensor, ids: Sequence[int]) -> float:
        """Mean log-likelihood of the tokens of a clip's text, its end among them."""
        said = torch.tensor([*ids, int(self._config.eos_token_id)], device=prompt.device)
        read = torch.cat([prompt, said[:-1]])[None]
        logits: Tensor = self._base.model(encoder_outputs=alone, decoder_input_ids=read).logits[0, -len(said) :]
        return float(logits.float().log_softmax(1).gather(1, said[:, None]).mean())

    def _anew(self, alone: Any, prompt: Tensor, place: int, ids: list[int], *, timestamps: bool) -> list[int]:
        """What is written of a clip at the first temperature at which it does not go round in circles, else ``ids``."""
        for temperature in TEMPERATURES:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                (found,) = self._ids(alone, prompt[place : place + 1], timestamps=timestamps, temperature=temperature)
            if not self._circles(found):
                return found
        return ids

    def _circles(self, ids: Sequence[int]) -> bool:
        text = self._text([token for token in ids if token < self._first]).encode()
        return len(text) > _COMPRESSIBLE * len(zlib.compress(text))

    def _ids(self, encoded: Any, prompt: Tensor, *, timestamps: bool, temperature: float = 0.0) -> list[list[int]]:
        """The tokens that are written, up to the end of the text."""
        end = int(self._config.eos_token_id)
        written = self._written(encoded, prompt, timestamps=timestamps, temperature=temperature)
        rows: list[list[int]] = written[:, prompt.shape[1] :].tolist()
        return [ids[: ids.index(end)] if end in ids else ids for ids in rows]

    @property
    def _first(self) -> int:
        return int(self._config.no_timestamps_token_id) + 1

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._base.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _prompt(self, first: Tensor, *, timestamps: bool) -> Tensor:
        """The tokens [N, p] that say what is wanted; ``first`` [N, words] are the logits of a text's first token."""
        count, device, config = len(first), first.device, self._config
        columns = [torch.full((count,), int(config.decoder_start_token_id), device=device)]
        if self._base.multilingual:
            columns.append(self._spoken(first))
            columns.append(torch.full((count,), int(config.task_to_id[self.task]), device=device))
        if not timestamps:
            columns.append(torch.full((count,), int(config.no_timestamps_token_id), device=device))
        return torch.stack(columns, 1)

    def _spoken(self, first: Tensor) -> Tensor:
        """The language's token of each clip: the one that is set, else the likeliest."""
        known = self._languages()
        if self.language is not None:
            return torch.full((len(first),), known[self.language], device=first.device)
        tokens = torch.tensor(sorted(known.values()), device=first.device)
        return tokens[first[:, tokens].argmax(1)]

    def _written(self, encoded: Any, prompt: Tensor, *, timestamps: bool, temperature: float) -> Tensor:
        """Prompt and what follows, [N, p + n], by the plain search of transformers: Whisper's own moves windows too."""
        from transformers import GenerationConfig
        from transformers.generation.utils import GenerationMixin

        model: Any = self._base.model
        search: Any = GenerationMixin
        config = GenerationConfig(
            max_new_tokens=int(model.config.max_target_positions) // 2,  # as OpenAI's own program
            num_beams=self._beams if not temperature else 1,
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_k=0 if temperature else None,
            eos_token_id=self._config.eos_token_id,
            pad_token_id=self._config.pad_token_id if self._config.pad_token_id is not None else 0,
            bos_token_id=self._config.bos_token_id,
            decoder_start_token_id=self._config.decoder_start_token_id,
        )
        rules = self._rules(prompt.shape[1], str(prompt.device), timestamps=timestamps)
        with without_reports():
            return search.generate(
                model,
                encoder_outputs=encoded,
                decoder_input_ids=prompt,
                generation_config=config,
                logits_processor=rules,
            )

    def _rules(self, begin: int, device: str, *, timestamps: bool) -> Any:
        """What may not be written: the tokens that the model's own settings rule out, and timestamps out of order."""
        from transformers import LogitsProcessorList
        from transformers.generation.logits_process import (
            SuppressTokensAtBeginLogitsProcessor,
            SuppressTokensLogitsProcessor,
            WhisperTimeStampLogitsProcessor,
        )

        rules: list[Any] = []
        if never := getattr(self._config, "suppress_tokens", None):
            rules.append(SuppressTokensLogitsProcessor(never, device=device))
        if at_first := getattr(self._config, "begin_suppress_tokens", None):
            rules.append(SuppressTokensAtBeginLogitsProcessor(at_first, begin, device=device))
        if timestamps:
            rules.append(WhisperTimeStampLogitsProcessor(self._config, begin_index=begin))
        return LogitsProcessorList(rules)


def _one(encoded: Any, place: int) -> Any:
    """What was heard in one clip of several."""
    return type(encoded)(last_hidden_state=encoded.last_hidden_state[place : place + 1])


@dataclass(frozen=True)
class Opened:
    """A base with adapters active on it.

    Attributes:
        base: the model.
        manager: of the adapters.
        language: what they were trained for; None where they do not say.
        task: likewise; "transcribe" where they do not say.
        timestamps: whether all of them were trained with timestamps.
    """

    base: SpeechBase
    manager: AdapterManager
    language: str | None
    task: str
    timestamps: bool


def open_ears(
    adapters: Sequence[tuple[Path, float]] = (),
    base: str | None = None,
    *,
    language: str | None = None,
    task: str | None = None,
    timestamps: bool | None = None,
    beams: int = 1,
    fallback: bool = True,
    progress: Progress = SILENT,
) -> WhisperEars:
    """Return a base with adapters on the best device.

    Args:
        adapters: files (or folders of peft's) with the weight of each; several are blended.
        base: where the base is, if not where the first adapter says.
        language: of what is spoken; None: what the adapters were trained for.
        task: "transcribe" or "translate"; None: what the adapters were trained for.
        timestamps: whether segments are timed by the model; None: as the adapters were trained.
        beams: alternatives that are followed.
        fallback: write anew what goes round in circles.
        progress: where loading is shown.

    Raises:
        ConfigError: no base is named, or the model cannot do what is asked.
        AdapterError: an adapter is of another base, or they are for different languages or tasks.
        BaseModelError: the base cannot be loaded.
    """
    opened = open_speech_model(adapters, base, language=language, task=task, progress=progress)
    return WhisperEars(
        opened.base,
        language=opened.language,
        task=opened.task,
        timestamps=opened.timestamps if timestamps is None else timestamps,
        beams=beams,
        fallback=fallback,
    )


def open_speech_model(
    adapters: Sequence[tuple[Path, float]] = (),
    base: str | None = None,
    *,
    language: str | None = None,
    task: str | None = None,
    progress: Progress = SILENT,
    device: str | None = None,
) -> Opened:
    """Return a base with adapters active on it, on a device or on the best one; else the arguments of `open_ears`.

    Raises:
        ConfigError: no base is named.
        AdapterError: an adapter is of another base, or they are for different languages or tasks.
        BaseModelError: the base cannot be loaded.
    """
    from visionpeft.compute.devices import best_device
    from visionpeft.files import read
    from visionpeft.models.manage import manage
    from visionpeft.models.speech import SPEECH_BASES, load_speech

    values = {name: read(path) for name, (path, _) in zip(_names(adapters), adapters, strict=True)}
    place = base or next((value.metadata.base for value in values.values() if value.metadata.base), "")
    if not place:
        raise ConfigError(
            "no base: give an adapter that tells its own, or name one with --base: a folder, a hub id, or the embedded"
            f" {', '.join(SPEECH_BASES)}."
        )
    spoken, wanted, timed = _about(values, language, task)
    seeds = [value.metadata.heads.get("scratch") for value in values.values()]
    seed = next((one for one in seeds if one is not None), None)
    with progress.phase("loading the base", 1) as bar:
        loaded = load_speech(place, device=device or best_device(), scratch=seed is not None, seed=seed or 0)
        bar.advance()
    manager = manage(loaded)
    for name, value in values.items():
        manager.attach(name, value)
    manager.activate({name: weight for name, (_, weight) in zip(values, adapters, strict=True)})
    loaded.model.eval()
    told = SpeechAbout(timestamps=True) if values else _told(loaded)
    return Opened(loaded, manager, spoken or told.language, wanted or told.task, timed and told.timestamps)


def tell_about(opened: Opened) -> None:
    """Have a model with merged adapters tell what they were trained for, transformers' own search and this program."""
    said = {"language": opened.language, "task": opened.task, "timestamps": opened.timestamps}
    about = SpeechAbout.model_validate(said)
    config: Any = opened.base.model.generation_config
    if opened.base.multilingual:
        config.language, config.task = about.language, about.task
    config.return_timestamps = about.timestamps  # which says nothing in folders of others: false in all of OpenAI's
    setattr(config, _TOLD, about.model_dump())


def _told(base: SpeechBase) -> SpeechAbout:
    """What a model says that it was trained for, where this program merged it; else that of OpenAI's own."""
    told: Any = getattr(base.model.generation_config, _TOLD, None)
    try:
        return SpeechAbout(timestamps=True) if told is None else SpeechAbout.model_validate(told)
    except ValidationError as error:
        raise BaseModelError(
            f"{base.id}: its generation_config.json is damaged at '{_TOLD}'; write it anew."
        ) from error


def _names(adapters: Sequence[tuple[Path, float]]) -> list[str]:
    """A name for each adapter, all different."""
    stems = [path.name.removesuffix(".safetensors").replace(".", "-") or "adapter" for path, _ in adapters]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems, 1)]


def _about(
    values: Mapping[str, Adapter], language: str | None, task: str | None
) -> tuple[str | None, str | None, bool]:
    """Language and task, as given, else as the adapters were trained (None: nobody says); whether with timestamps."""
    found: dict[str, str] = {}
    for key, given in (("language", language), ("task", task)):
        said = {str(value.metadata.heads[key]) for value in values.values() if value.metadata.heads.get(key)}
        if len(said) > 1 and given is None:
            raise AdapterError(f"the adapters are for different {key}s ({', '.join(sorted(said))}): say --{key}.")
        if given or said:
            found[key] = given or next(iter(said))
    timed = all(bool(value.metadata.heads.get("timestamps", True)) for value in values.values())
    return found.get("language"), found.get("task"), timed
