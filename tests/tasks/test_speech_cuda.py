"""What only a GPU can show of transcription: steps that never wait for it, recorded or not, are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_speech import speech_settings, write_speech, write_whisper
from visionpeft.config import config_from
from visionpeft.delivery.speech import build
from visionpeft.training.engine import fit

IN_4_BITS = {"train": {"memory": {"base": "nf4"}}}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("more", [{}, IN_4_BITS, {"adapter": {"method": "prompt"}}], ids=["lora", "nf4", "prompt"])
def test_recorded_steps_are_those_that_were_launched(tmp_path: Path, more: dict[str, object]):
    write_whisper(tmp_path / "base")
    write_speech(tmp_path / "speech")
    config = config_from(speech_settings(tmp_path, **more))
    train = config.train.model_copy(update={"steps": 8, "deterministic": True, "evaluate_every": 0})
    found = [
        fit(build(config), train.model_copy(update={"record": record}), tmp_path / record).adapter.tensors
        for record in ("auto", "off")
    ]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
