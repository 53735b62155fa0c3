"""A Whisper, loaded from wherever it is: embedded, a folder of transformers, or a hub id."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from visionpeft.errors import BaseModelError, ConfigError, did_you_mean
from visionpeft.models.base import ASSETS, check_embedded, weights_hash
from visionpeft.models.family import Family
from visionpeft.models.quiet import without_loading_bars, without_reports
from visionpeft.models.stored import stored_type
from visionpeft.models.whisper import WHISPER

SPEECH_BASES = {"visionpeft/small-whisper": "small-whisper"}
"""The embedded bases: id -> folder in the package's assets."""

T = TypeVar("T")


@dataclass
class SpeechBase:
    """A Whisper and what the rest of the program asks of it.

    Attributes:
        model: a WhisperForConditionalGeneration, in evaluation mode.
        tokenizer: its WhisperTokenizerFast.
        family: of its layers.
        id: what it was loaded by.
        hash: content hash of its weights; equal for float32 and float16 copies.
        features: its WhisperFeatureExtractor: 16 kHz float32 mono -> log-mel features.
    """

    model: Any
    tokenizer: Any
    family: Family
    id: str
    hash: str
    features: Any

    @property
    def multilingual(self) -> bool:
        """Whether it knows languages and translates; English-only models know neither."""
        told = getattr(self.model.generation_config, "is_multilingual", None)
        return bool(getattr(self.model.generation_config, "lang_to_id", None)) if told is None else bool(told)

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of the languages that it knows: "en" alone where it is not multilingual."""
        table: dict[str, int] = getattr(self.model.generation_config, "lang_to_id", None) or {}
        return tuple(name.strip("<|>") for name in table) if self.multilingual else ("en",)

    @property
    def window(self) -> float:
        """Seconds that it hears at once: 30 but for small ones of another make."""
        return float(self.features.chunk_length)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.model.model.encoder.embed_positions.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights, which its features take too."""
        return self.model.model.encoder.embed_positions.weight.dtype

    def shorten(self, seconds: int) -> None:
        """Make the model hear so many seconds at once, of those that it heard: the first of its positions stay.

        The encoder's work falls with its positions, that of its attention with their square. Adapters of either fit
        the other: no layer that they change knows how many positions there are.

        Raises:
            ConfigError: it is longer than the model hears.
        """
        if seconds > self.window:
            raise ConfigError(f"data.window: {seconds} s, but '{self.id}' hears {self.window:g} s at once.")
        encoder, rate = self.model.model.encoder, self.features.sampling_rate
        count = int(encoder.config.max_source_positions * seconds / self.window)
        encoder.embed_positions = nn.Embedding.from_pretrained(encoder.embed_positions.weight[:count].detach().clone())
        encoder.config.max_source_positions = self.model.config.max_source_positions = count
        self.features = copy(self.features)
        self.features.chunk_length, self.features.n_samples = seconds, seconds * rate
        self.features.nb_max_frames = seconds * rate // self.features.hop_length

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> SpeechBase:
        """Move the model and return self; adapters' masters stay float32."""
        self.model.to(device=device, dtype=dtype)
        return self


def load_speech(
    ref: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    scratch: bool = False,
    seed: int = 0,
    stored: bool = False,
) -> SpeechBase:
    """Load a Whisper; only safetensors, never a pickle.

    Args:
        ref: "visionpeft/small-whisper" | a folder of transformers | a hub id.
        device: where it goes; "meta" takes the shapes alone: no weights are read, and the hash is "".
        dtype: of its weights; None means float32.
        scratch: its shape and words, but random weights.
        seed: of these weights.
        stored: leave weights in the one type that a folder has them in, so that they stay in their files, which
            processes share, until they are needed.

    Raises:
        BaseModelError: not found, not readable, a pickle, or no Whisper; says what to do.
    """
    empty = torch.device(device).type == "meta"
    name, place = str(ref), _place(ref)
    bare = torch.device("meta") if empty else contextlib.nullcontext()
    kept = (stored_type(place) if stored else None) or torch.float32
    with torch.random.fork_rng(devices=[]), without_loading_bars(), without_reports():
        torch.manual_seed(seed)
        with bare:
            model = _reading(name, lambda: _model(name, place, kept, scratch=scratch or empty))
        tokenizer, features = _reading(name, lambda: _processors(place))
    model.config.apply_spec_augment = False  # masks are drawn by the training's own random numbers
    model.generation_config.forced_decoder_ids = None  # language and task are given, never forced by place
    _check_words(name, model, tokenizer)
    model.eval()
    told = "" if empty else weights_hash({"model": model}, WHISPER)
    base = SpeechBase(model, tokenizer, WHISPER, name, told, features)
    return base.to(device, dtype or kept)


def _place(ref: str | Path) -> str:
    name, path = str(ref), Path(ref)
    if name in SPEECH_BASES:
        path = ASSETS / SPEECH_BASES[name]
        if not (path / "config.json").is_file():
            raise BaseModelError(f"The embedded base '{name}' is not in this installation; install the package anew.")
        return str(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BaseModelError(f"{path}: no config.json there; give the folder of a Whisper of transformers.")
        if not list(path.glob("*.safetensors")):
            raise BaseModelError(f"{path}: no .safetensors there; convert the weights (pickles are not loaded).")
        return str(path)
    near = did_you_mean(name, [*SPEECH_BASES, *(str(other) for other in path.parent.glob("*"))])
    if name.count("/") != 1 or name.startswith((".", "/")) or path.exists():
        raise BaseModelError(f"{name}: there is no such base or folder.{near}")
    check_embedded(name, SPEECH_BASES)
    return name


def _model(name: str, place: str, dtype: torch.dtype, *, scratch: bool) -> Any:
    from transformers import AutoConfig, GenerationConfig, WhisperForConditionalGeneration

    config: Any = AutoConfig.from_pretrained(place)
    if config.model_type != "whisper":
        raise BaseModelError(f"'{name}' is a '{config.model_type}', not a Whisper.")
    if scratch:
        model = WhisperForConditionalGeneration(config)
        with contextlib.suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(place)
        return model
    whole: Any = WhisperForConditionalGeneration.from_pretrained(
        place, use_safetensors=True, dtype=dtype, output_loading_info=True
    )
    model, info = whole
    if missing := sorted(set(info["missing_keys"]) - {"proj_out.weight"}):
        raise BaseModelError(f"'{name}' lacks {len(missing)} of the model's weights, '{missing[0]}' for one.")
    return model


def _processors(place: str) -> tuple[Any, Any]:
    import transformers

    tokenizer: Any = getattr(transformers, "WhisperTokenizerFast")  # noqa: B009 - not in the library's stubs
    return tokenizer.from_pretrained(place), transformers.WhisperFeatureExtractor.from_pretrained(place)


def _check_words(name: str, model: Any, tokenizer: Any) -> None:
    config = model.generation_config
    needed = ("decoder_start_token_id", "eos_token_id", "no_timestamps_token_id")
    for key in needed:
        if getattr(config, key, None) is None:
            raise BaseModelError(f"'{name}': generation_config.json has no {key}; take it from the original model.")
    if len(tokenizer) > model.config.vocab_size:
        raise BaseModelError(
            f"'{name}': its tokenizer knows {len(tokenizer)} tokens, its model {model.config.vocab_size}: they do not "
            "belong together."
        )


def _reading(name: str, read: Callable[[], T]) -> T:
    """Do `read()` and turn what the libraries raise into one clear line."""
    try:
        return read()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        if isinstance(error, BaseModelError):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BaseModelError(
            f"'{name}' cannot be loaded: {reason[:200]} Give a folder in the layout of transformers with whole"
            " .safetensors, or a hub id that can be reached."
        ) from error
