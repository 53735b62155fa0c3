"""Runs that have to stop: numbers that are none, memory or disk that is full."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch

from tests.training.toy import Toy
from visionpeft.adapters.archive import Adapter
from visionpeft.errors import OutputError, ResourceError, TrainingError
from visionpeft.training.checkpoint import CheckpointStore
from visionpeft.training.engine import fit
from visionpeft.training.remedies import memory_explained, not_a_number
from visionpeft.training.settings import TrainConfig
from visionpeft.training.trainer import Trainer

CONFIG = TrainConfig(steps=30, batch_size=3, learning_rate=0.01, checkpoint_every=2, log_every=7, seed=1)


@pytest.mark.parametrize("poison_gradient", [False, True])
def test_not_a_number_names_the_step_and_its_files(tmp_path, poison_gradient):
    order = Toy()
    fit(order, CONFIG.model_copy(update={"checkpoint_every": 0}), tmp_path / "healthy")
    victim = order.seen[5][1]  # the first step that meets it is the sixth, as an epoch has 23 samples
    task = Toy(poison=victim, poison_gradient=poison_gradient)
    with pytest.raises(TrainingError) as caught:
        fit(task, CONFIG, tmp_path / "sick")
    assert caught.value.exit_status == 1
    message = str(caught.value)
    assert "step 6 is not a number" in message
    assert re.findall(r"sample_(\d+)\.png", message) == [str(i) for i in order.seen[5]]
    assert "checkpoint of step 4 stays" in message
    assert [p.name for p in sorted((tmp_path / "sick" / "checkpoints").glob("step_*"))] == [
        "step_000002",
        "step_000004",
    ]
    fit(Toy(), CONFIG, tmp_path / "sick", resume="auto")
    healthy = tmp_path / "healthy" / "checkpoints" / "step_000030" / "state.safetensors"
    assert (
        tmp_path / "sick" / "checkpoints" / "step_000030" / "state.safetensors"
    ).read_bytes() == healthy.read_bytes()


def test_many_files_are_counted():
    message = str(not_a_number(3, [f"{i}.png" for i in range(20)], []))
    assert "15.png and 4 more" in message
    assert "No checkpoint" in message


def test_a_loss_that_does_not_depend_on_the_adapter_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no gradient reaches"):
        fit(Toy(deaf=True), CONFIG, tmp_path)


class Full(Toy):
    """Fails in the step, as a device without memory does."""

    error: Exception = MemoryError()

    def loss(self, batch, rng):
        if rng.step == 2:
            raise self.error
        return super().loss(batch, rng)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_out_of_memory_says_which_setting(tmp_path, error):
    task = Full()
    task.error = error
    with pytest.raises(ResourceError) as caught:
        fit(task, CONFIG, tmp_path)
    assert "out of memory while training" in str(caught.value)
    assert "train.batch_size=1 (now 3)" in str(caught.value)
    assert "train.gradient_checkpointing=true" in str(caught.value)


def test_only_what_helps_is_advised_and_other_errors_pass():
    with pytest.raises(ResourceError) as caught, memory_explained("x", 1, gradient_checkpointing=True):
        raise MemoryError
    assert "batch_size" not in str(caught.value)
    assert "gradient_checkpointing" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shapes"), memory_explained("x", 1, gradient_checkpointing=True):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("file", ["adapter.safetensors", "state.safetensors", "state.json", None])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, file):
    fit(Toy(), CONFIG.model_copy(update={"steps": 2}), tmp_path)
    real = os.fsync

    def full(descriptor):
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if "step_000004" in name and (file is None or file in name):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError):
        fit(Toy(), CONFIG.model_copy(update={"steps": 4}), tmp_path, resume="auto")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]
    assert fit(Toy(), CONFIG.model_copy(update={"steps": 4}), tmp_path, resume="auto").steps == 4


def test_removed_checkpoints_go_in_one_move(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(3, Toy().capture(), {"note": 1})
    store.save(3, Toy().capture(), {"note": 2})
    assert store.steps() == [3]
    assert store.read(3).state["note"] == 2
    assert isinstance(store.read(3).adapter(), Adapter)
    (tmp_path / ".aside_old_step_000003").mkdir()
    (tmp_path / ".aside_step_000004").mkdir()
    store.clean()
    assert [p.name for p in tmp_path.iterdir()] == ["step_000003"]
    store.remove(3)
    assert list(tmp_path.iterdir()) == []


def trainer(trainable):
    from visionpeft.compute.precision import FP32

    return Trainer(trainable, CONFIG, FP32, 1)


def test_what_cannot_be_trained_is_refused():
    good = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TrainingError, match="nothing to train: add an adapter"):
        trainer({})
    with pytest.raises(TrainingError, match="nothing to train in unet"):
        trainer({"text_encoder": [good], "unet": []})
    with pytest.raises(TrainingError, match=r"unet\.0 is torch\.float16: trained weights must be float32"):
        trainer({"unet": [torch.nn.Parameter(torch.ones(2).half())]})
    with pytest.raises(TrainingError, match=r"unet\.1 does not require gradients"):
        trainer({"unet": [good, torch.nn.Parameter(torch.ones(2), requires_grad=False)]})
    with pytest.raises(TrainingError, match=r"unet\.0 is text_encoder\.0 too: it can be trained in one place"):
        trainer({"unet": [good], "text_encoder": [good]})


def test_the_log_is_one_json_object_a_line(tmp_path):
    fit(Toy(), CONFIG.model_copy(update={"evaluate_every": 15}), tmp_path, preview_every=10)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines if line["kind"] == "train"] == [
        ("train", step) for step in (7, 14, 21, 28, 30)
    ]
    assert {line["step"] for line in lines if line["kind"] == "evaluate"} == {0, 15, 30}
    previews = [line for line in lines if line["kind"] == "preview"]
    assert [line["files"]["grid"] for line in previews] == [f"previews/{s:06d}.png" for s in (0, 10, 20, 30)]
    assert set(lines[-3]) >= {"loss", "gradient_norm", "learning_rate", "seconds_per_step", "samples_per_second"}
