"""The engine on a real task: adapters of the manager in a tiny pipeline, class pictures, dropout, two components."""

import signal

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_sd1
from tests.training.test_resume import everything
from tests.training.test_steps import Replaying, recorders
from visionpeft.adapters.layers import Branch
from visionpeft.adapters.spec import LoraSpec
from visionpeft.models.base import Base, weights_hash
from visionpeft.models.family import components_of, family_of
from visionpeft.tasks.dreambooth import DreamBooth
from visionpeft.tasks.dreambooth_settings import DreamBoothData
from visionpeft.training.engine import fit
from visionpeft.training.interrupt import TrainingInterruptedError
from visionpeft.training.settings import TrainConfig

__all__ = ["recorders"]

CONFIG = TrainConfig(
    steps=4, batch_size=1, gradient_accumulation=2, ema=0.9, schedule="linear",
    learning_rate={"unet": 1e-3, "text_encoder": 1e-4},
)  # fmt: skip
ADAPTER = LoraSpec(rank=2, dropout=0.1, targets={"unet": "attention.q", "text_encoder": "attention.q"})


class Stopping(DreamBooth):
    """Asks for a stop in the second step."""

    asked = False

    def loss(self, batch, rng):
        if rng.step == 1 and not self.asked:
            self.asked = True
            signal.raise_signal(signal.SIGTERM)
        return super().loss(batch, rng)


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{n}.png")
    prior = {"prompt": "a photo of a robot", "count": 2, "steps": 1}
    data = DreamBoothData.model_validate(
        {"instance": {"images": photos, "prompt": "a photo of sks robot"}, "prior": prior}
    )

    def made(kind):
        pipeline = tiny_sd1()
        base = Base(pipeline, family_of(pipeline), "tiny/sd1", weights_hash(components_of(pipeline)))
        return kind(base, data, ADAPTER)

    return made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dreambooth_goes_on_bit_equal(make, tmp_path, precision):
    config = CONFIG.model_copy(update={"precision": precision})
    fit(make(DreamBooth), config, tmp_path / "straight")
    with pytest.raises(TrainingInterruptedError, match="after step 2"):
        fit(make(Stopping), config, tmp_path / "stopped")
    fit(make(DreamBooth), config, tmp_path / "stopped", resume="auto")
    assert everything(tmp_path / "stopped", 4) == everything(tmp_path / "straight", 4)


def test_recorded_half_precision_steps_are_the_same(make, tmp_path, recorders):
    config = CONFIG.model_copy(update={"precision": "bf16"})
    fit(make(DreamBooth), config, tmp_path / "launched")
    recorders.append(Replaying())
    fit(make(DreamBooth), config, tmp_path / "recorded")
    assert recorders[-1].recorded > 1
    assert everything(tmp_path / "recorded", 4) == everything(tmp_path / "launched", 4)


class Looking(DreamBooth):
    """Notes how its losses are computed, and that none of them spells a prompt."""

    def loss(self, batch, rng):
        self.base.pipeline.tokenizer, kept = None, self.base.pipeline.tokenizer
        try:
            out = super().loss(batch, rng)
        finally:
            self.base.pipeline.tokenizer = kept
        self.heard = [*getattr(self, "heard", []), (torch.is_autocast_enabled("cpu"), float(out.loss_sum.detach()))]
        return out


@pytest.mark.parametrize("adapter", [ADAPTER, LoraSpec(rank=2, targets={"unet": ("attention", "conv"),
                                                                        "text_encoder": "mlp"})])  # fmt: skip
def test_half_precision_needs_no_autocast_and_loses_little(make, tmp_path, adapter):
    found = {}
    for precision in ("fp32", "bf16"):
        task = make(Looking)
        task.manager.remove("subject")
        task.report = task.manager.add("subject", adapter)
        fit(task, CONFIG.model_copy(update={"precision": precision}), tmp_path / precision)
        assert not any(cast for cast, _ in task.heard)
        branches = [part for part in task.base.unet.modules() if isinstance(part, Branch)]
        assert all(bool(part.copies) == (precision == "bf16") for part in branches)
        found[precision] = torch.tensor([loss for _, loss in task.heard])
    torch.testing.assert_close(found["bf16"], found["fp32"], rtol=0.03, atol=0.01)
    assert not torch.equal(found["bf16"], found["fp32"])
