"""What only a GPU can show: steps that never wait for it, and float16 with a loss scale."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_sd1, tiny_sdxl
from tests.training.test_resume import FULL, STEPS, Listening, Stopping, everything
from tests.training.toy import Toy
from visionpeft.adapters.spec import LoraSpec
from visionpeft.models.base import Base, weights_hash
from visionpeft.models.family import components_of, family_of
from visionpeft.models.joined_attention import JoinedAttention
from visionpeft.tasks.dreambooth import DreamBooth
from visionpeft.tasks.dreambooth_settings import DreamBoothData
from visionpeft.training.engine import fit
from visionpeft.training.interrupt import TrainingInterruptedError
from visionpeft.training.optim import OptimizerConfig
from visionpeft.training.settings import TrainConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Strict(Toy):
    """Makes any wait for the device an error, from the third step to the last but one."""

    def batch(self, positions):
        self.batches = getattr(self, "batches", 0) + 1
        torch.cuda.set_sync_debug_mode("error" if 6 <= self.batches < 20 else "default")
        return super().batch(positions)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_step_waits_for_the_device(tmp_path, precision):
    config = TrainConfig(
        steps=10, gradient_accumulation=2, log_every=100, checkpoint_every=0, ema=0.9, precision=precision
    )
    task = Strict()
    try:
        fit(task, config, tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert task.batches == 21  # one is looked at before the first step, for the shapes of its attention


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_exact(tmp_path, precision):
    config = FULL.model_copy(update={"precision": precision, "deterministic": True})
    fit(Toy(), config, tmp_path / "straight")
    for stop in (2, 5):
        task = Stopping()
        task.stop_at = stop
        with pytest.raises(TrainingInterruptedError):
            fit(task, config, tmp_path / f"{stop}")
        fit(Toy(), config, tmp_path / f"{stop}", resume="auto")
        assert everything(tmp_path / f"{stop}") == everything(tmp_path / "straight")
    assert (tmp_path / "straight" / "checkpoints" / f"step_{STEPS:06d}").is_dir()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_recorded_steps_are_the_same_to_the_last_bit(tmp_path, precision, optimizer):
    config = FULL.model_copy(
        update={"precision": precision, "deterministic": True, "optimizer": OptimizerConfig(name=optimizer)}
    )
    heard = {}
    for record in ("auto", "off"):
        heard[record] = Listening()
        fit(Toy(), config.model_copy(update={"record": record}), tmp_path / record, progress=heard[record])
    assert everything(tmp_path / "auto") == everything(tmp_path / "off")
    assert not heard["auto"].lines


class Looking(Toy):
    """Waits for the device in its loss."""

    def loss(self, batch, rng):
        out = super().loss(batch, rng)
        assert float(out.count) > 0
        return out


def test_a_loss_that_waits_is_not_recorded_and_goes_on(tmp_path):
    heard = Listening()
    fit(Toy(), FULL.model_copy(update={"record": "off"}), tmp_path / "off")
    fit(Looking(), FULL, tmp_path / "auto", progress=heard)
    assert everything(tmp_path / "auto") == everything(tmp_path / "off")
    assert len(heard.lines) == 1
    assert heard.lines[0].startswith("steps are not recorded, which makes them slower: ")


def test_float16_overflow_lowers_the_scale_and_goes_on(tmp_path):
    class Loud(Toy):
        def loss(self, batch, rng):
            out = super().loss(batch, rng)
            out.loss_sum = out.loss_sum * 1e3
            return out

    loud = TrainConfig(steps=60, precision="fp16", log_every=60, checkpoint_every=0)
    fit(Loud(), loud, tmp_path)
    state = json.loads((tmp_path / "checkpoints" / "step_000060" / "state.json").read_text())
    assert state["numbers"]["scaler"]["scale"] < 65536.0


def test_auto_is_bfloat16_where_the_device_computes_in_it(tmp_path):
    task = Toy()
    fit(task, TrainConfig(steps=1), tmp_path)
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert task.context.dtype == (torch.bfloat16 if native else torch.float16)


BOTH = {"unet": "attention", "text_encoder": "attention"}
PRIOR = {"prompt": "a photo of a robot", "count": 2, "steps": 1}
WORKS = {
    "unet": ({"unet": "attention"}, {}),
    "unet, text encoder, class pictures": (BOTH, {"prior": PRIOR}),
    "taught by the base": (BOTH, {"prior": {**PRIOR, "target": "base"}}),
    "convolutions": ({"unet": ("attention", "conv")}, {}),
}


@pytest.fixture
def dreambooth(tmp_path, monkeypatch):
    """Makes DreamBooth tasks on a tiny pipeline: dreambooth("unet", "sd1", dropout=0.0)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{n}.png")

    def made(work, family="sd1", dropout=0.0):
        targets, more = WORKS[work]
        pipeline = {"sd1": tiny_sd1, "sdxl": tiny_sdxl}[family]()
        base = Base(pipeline, family_of(pipeline), f"tiny/{family}", weights_hash(components_of(pipeline)))
        data = {"instance": {"images": photos, "prompt": "a photo of sks robot"}, **more}
        return DreamBooth(base, DreamBoothData.model_validate(data), LoraSpec(rank=4, dropout=dropout, targets=targets))

    return made


REAL = TrainConfig(
    steps=8, batch_size=1, gradient_accumulation=2, ema=0.9, schedule="linear", learning_rate=1e-3, deterministic=True
)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("work", WORKS)
def test_recorded_dreambooth_is_the_same_to_the_last_bit(dreambooth, tmp_path, work, precision, dropout):
    heard = {}
    for record in ("auto", "off"):
        heard[record] = Listening()
        config = REAL.model_copy(update={"precision": precision, "record": record})
        fit(dreambooth(work, dropout=dropout), config, tmp_path / record, progress=heard[record])
    assert [line for line in heard["auto"].lines if "are not recorded" in line] == []
    assert everything(tmp_path / "auto", 8) == everything(tmp_path / "off", 8)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_recorded_recomputing_steps_are_the_same(dreambooth, tmp_path, family):
    heard = Listening()
    for record in ("auto", "off"):
        changes = {"precision": "bf16", "record": record, "gradient_checkpointing": True}
        fit(dreambooth("unet", family), REAL.model_copy(update=changes), tmp_path / record, progress=heard)
    assert [line for line in heard.lines if "are not recorded" in line] == []
    assert everything(tmp_path / "auto", 8) == everything(tmp_path / "off", 8)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_compiled_recorded_steps_learn_the_same(dreambooth, tmp_path, family):
    heard, found = Listening(), {}
    for setting in ("on", "off"):
        changes = {"precision": "bf16", "compile": setting, "learning_rate": 1e-4}
        config = REAL.model_copy(update={**changes, "deterministic": False})
        found[setting] = fit(dreambooth("unet", family), config, tmp_path / setting, progress=heard).last
    assert [line for line in heard.lines if "not recorded" in line or "not compiled" in line] == []
    # AdamW's first steps go by the gradients' signs, which rounding turns where they are small
    for name, tensor in found["off"].tensors.items():
        torch.testing.assert_close(found["on"].tensors[name], tensor, rtol=0.0, atol=2e-3, msg=name)


def test_the_placed_unet_is_channels_last_joined_and_computes_without_autocast(dreambooth, tmp_path):
    task = dreambooth("unet")
    cast = []
    task.base.unet.register_forward_pre_hook(lambda *given: cast.append(torch.is_autocast_enabled("cuda")))
    fit(task, REAL.model_copy(update={"precision": "bf16", "steps": 4}), tmp_path)
    kernel = task.base.unet.down_blocks[0].resnets[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert cast
    assert not any(cast)
    assert all(isinstance(part, JoinedAttention) for part in task.base.unet.attn_processors.values())


class Watched(DreamBooth):
    """Makes any wait for the device in a batch or a loss an error, when libraries have come to be."""

    losses = 0

    def batch(self, positions):
        return self._unwaited(super().batch, positions)

    def loss(self, batch, rng):
        def learn():
            out = super(Watched, self).loss(batch, rng)
            if torch.is_grad_enabled():
                out.loss_sum.backward(retain_graph=True)
            return out

        self.losses += 1
        return self._unwaited(learn)

    def _unwaited(self, work, *given):
        torch.cuda.set_sync_debug_mode("error" if self.losses > 3 else "default")
        try:
            return work(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_step_of_dreambooth_never_waits(dreambooth, tmp_path, family):
    task = dreambooth("taught by the base", family)
    task.__class__ = Watched
    fit(task, REAL.model_copy(update={"precision": "bf16", "record": "off", "steps": 4}), tmp_path / "run")
    assert task.losses > 6
