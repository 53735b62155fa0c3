"""What only a GPU can show of transcription: steps are recorded, and are those that were launched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_speech import speech_settings, write_speech, write_whisper
from visionpeft.adapters.archive import Adapter
from visionpeft.compute.thrift import MemoryConfig
from visionpeft.config import config_from
from visionpeft.delivery.speech import build
from visionpeft.progress import SILENT, RecordingProgress
from visionpeft.training.engine import fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WAYS = {
    "lora": ({}, {}),
    "bf16": ({}, {"precision": "bf16", "deterministic": False}),
    "int8": ({}, {"memory": MemoryConfig(base="int8")}),
    "nf4": ({}, {"memory": MemoryConfig(base="nf4")}),
    "prompt": ({"adapter": {"method": "prompt"}}, {}),
    "masks": ({"augment": {"time_masks": 2, "mel_masks": 2}}, {}),
    "recomputed": ({}, {"gradient_checkpointing": True}),
    "recomputed int8": (
        {},
        {"gradient_checkpointing": True, "precision": "bf16", "memory": MemoryConfig(base="int8")},
    ),
    "dropout": ({"adapter": {"method": "lora", "rank": 2, "dropout": 0.2}}, {}),
}
"""What a run changes, and what its training does."""


def trained(place: Path, more: Mapping[str, Any], **train: Any) -> tuple[Adapter, list[str]]:
    """An adapter of 8 steps, and what was said."""
    settings = speech_settings(place, **{key: value for key, value in more.items() if key != "augment"})
    if "augment" in more:
        settings["data"] = {**settings["data"], "augment": more["augment"]}  # pyright: ignore[reportGeneralTypeIssues]
    config: Any = config_from(settings)
    progress = RecordingProgress(SILENT)
    steps = config.train.model_copy(update={"steps": 8, "deterministic": True, "evaluate_every": 0, **train})
    adapter = fit(build(config), steps, place / f"run-{train['record']}", progress=progress).adapter
    return adapter, [line for line in progress.lines if "record" in line]


@pytest.mark.parametrize("way", WAYS)
def test_recorded_steps_are_those_that_were_launched(tmp_path: Path, way: str):
    write_whisper(tmp_path / "base")
    write_speech(tmp_path / "speech")
    more, train = WAYS[way]
    (recorded, said), (launched, _) = (trained(tmp_path, more, **{**train, "record": one}) for one in ("auto", "off"))
    assert not said
    rtol, atol = (0.02, 1e-4) if "precision" in train else (0.0, 0.0)
    for key, tensor in recorded.tensors.items():
        assert torch.allclose(tensor, launched.tensors[key], rtol=rtol, atol=atol), key


def test_dropout_that_is_recomputed_is_said_and_launched(tmp_path: Path):
    write_whisper(tmp_path / "base")
    write_speech(tmp_path / "speech")
    more = {"adapter": {"method": "lora", "rank": 2, "dropout": 0.2}}
    _, said = trained(tmp_path, more, gradient_checkpointing=True, record="auto")
    assert any("computed again" in line for line in said)
