"""A base that is read in the type that it is stored in is the same base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_sdxl
from tests.tiny_speech import write_whisper
from tests.vision_place import write_base
from visionpeft.models.base import load_base
from visionpeft.models.speech import load_speech
from visionpeft.models.stored import stored_type
from visionpeft.models.vision import load_vision


def vit(folder: Path) -> Path:
    from transformers import ViTForImageClassification

    place = write_base(folder / "vit", "vit")
    ViTForImageClassification.from_pretrained(place).bfloat16().save_pretrained(place)
    return place


def whisper(folder: Path) -> Path:
    from transformers import WhisperForConditionalGeneration

    place = write_whisper(folder / "whisper")
    WhisperForConditionalGeneration.from_pretrained(place).half().save_pretrained(place)
    return place


def sdxl(folder: Path) -> Path:
    tiny_sdxl().to(dtype=torch.float16).save_pretrained(folder / "sdxl")
    return folder / "sdxl"


CASES: dict[str, tuple[Callable[[Path], Path], Callable[..., Any], Callable[[Any], Any], torch.dtype]] = {
    "vit": (
        vit,
        lambda ref, **more: load_vision(ref, task="classify", **more),
        lambda base: base.model,
        torch.bfloat16,
    ),
    "whisper": (whisper, load_speech, lambda base: base.model, torch.float16),
    "sdxl": (sdxl, load_base, lambda base: base.unet, torch.float16),
}


@pytest.mark.parametrize("name", list(CASES))
def test_values_and_hash_are_those_of_float32(name: str, tmp_path: Path):
    write, load, model_of, dtype = CASES[name]
    place = write(tmp_path)
    kept, whole = load(place, stored=True), load(place)
    assert stored_type(place) == dtype
    assert kept.hash == whole.hash
    parameters = dict(model_of(whole).named_parameters())
    for key, parameter in model_of(kept).named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter.float(), parameters[key])


def test_interpolated_positions_are_float32(tmp_path: Path):
    place = vit(tmp_path)
    kept, whole = (load_vision(place, task="classify", image_size=48, stored=stored) for stored in (True, False))
    assert kept.dtype == torch.float32
    assert kept.hash == whole.hash


def test_mixed_types_and_hub_ids_tell_no_type(tmp_path: Path):
    place = sdxl(tmp_path)
    tiny_sdxl().vae.save_pretrained(place / "vae")
    assert stored_type(place) is None
    assert stored_type("someone/something") is None
    assert load_base(place, stored=True).unet.dtype == torch.float32
