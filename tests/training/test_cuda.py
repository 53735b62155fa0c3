"""What only a GPU can show: steps that never wait for it, and float16 with a loss scale."""

import json

import pytest
import torch

from tests.training.test_resume import FULL, STEPS, Listening, Stopping, everything
from tests.training.toy import Toy
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
    assert task.batches == 20


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
