"""A speech model as a folder for other programs: transformers' own, and CTranslate2's, which faster-whisper runs.

Adapters have no place in CTranslate2's format: merge them into the base first (``AdapterManager.merge``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Protocol

from visionpeft.errors import ConfigError, MissingExtraError, OutputError, did_you_mean
from visionpeft.files.change.places import new_folder
from visionpeft.models.quiet import without_loading_bars

QUANTIZATIONS = (
    "float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16",
)  # fmt: skip
"""How CTranslate2 stores weights; what it computes with is chosen when the folder is loaded."""

_BESIDE = ("tokenizer.json", "preprocessor_config.json")
"""What faster-whisper reads beside the model."""


class Speech(Protocol):
    """A `SpeechBase`: a Whisper of transformers, its tokenizer and what makes its features."""

    @property
    def model(self) -> Any:
        """The model, plain: without adapters, or with merged ones."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        ...

    @property
    def features(self) -> Any:
        """What makes log-mels."""
        ...


def write_transformers(base: Speech, folder: Path, *, overwrite: bool = False) -> Path:
    """Write a folder that transformers, and everything built on it, loads; return the path.

    Args:
        base: plain or merged, in the type that is to be written.
        folder: where it goes; it appears whole or not at all.
        overwrite: whether an existing folder may be replaced.

    Raises:
        OutputError: the folder exists or cannot be written.
    """
    with new_folder(folder, overwrite=overwrite) as part, without_loading_bars():
        _save(base, part)
    return folder


def write_ctranslate2(base: Speech, folder: Path, *, quantization: str = "float16", overwrite: bool = False) -> Path:
    """Write a folder that CTranslate2 and faster-whisper load; return the path.

    Args:
        base: plain or merged.
        folder: where it goes; it appears whole or not at all.
        quantization: one of ``QUANTIZATIONS``; "float32" gives the transcripts of the model itself.
        overwrite: whether an existing folder may be replaced.

    Raises:
        ConfigError: no such quantization.
        MissingExtraError: ctranslate2 is not installed.
        OutputError: the folder exists or cannot be written, or CTranslate2 cannot convert the model.
    """
    if quantization not in QUANTIZATIONS:
        near = did_you_mean(quantization, QUANTIZATIONS)
        raise ConfigError(f"CTranslate2 stores no '{quantization}': one of {', '.join(QUANTIZATIONS)}.{near}")
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise MissingExtraError("This format needs CTranslate2: pip install 'visionpeft[ctranslate2]'.") from error
    with (
        tempfile.TemporaryDirectory() as plain,
        new_folder(folder, overwrite=overwrite) as part,
        without_loading_bars(),
    ):
        _save(base, Path(plain))
        converter = TransformersConverter(plain, copy_files=list(_BESIDE))
        try:
            converter.convert(str(part), quantization=quantization, force=True)
        except (ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise OutputError(f"{folder}: CTranslate2 cannot convert this model: {error}") from error
    return folder


def _save(base: Speech, folder: Path) -> None:
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    base.features.save_pretrained(folder)
