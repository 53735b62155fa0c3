"""Memory that runs out in a step: the run steps down, and comes out where it would have come out."""

import json

import pytest
import torch

from tests.training.toy import Toy
from visionpeft.errors import ResourceError
from visionpeft.tasks.ladder import ladder_of
from visionpeft.training.engine import fit
from visionpeft.training.settings import TrainConfig
from visionpeft.training.stepdown import halved, lower, recomputing

CONFIG = TrainConfig(steps=12, batch_size=8, learning_rate=0.01, checkpoint_every=4, log_every=1, seed=1)


class Lines:
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def phase(self, label: str, total: int):
        from visionpeft.progress import SILENT

        return SILENT.phase(label, total)


class Small(Toy):
    """Has memory for ``room`` samples at once from its sixth step on, and raises what torch raises beyond."""

    room = 3

    def loss(self, batch, rng):
        if rng.step >= 5 and len(batch[0]) > self.room:
            out = super().loss(batch, rng)  # half of the work is done by then
            out.loss_sum.backward()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().loss(batch, rng)


def test_a_run_that_steps_down_ends_where_it_would_have_ended(tmp_path):
    whole, small, lines = Toy(dropout=0.0), Small(dropout=0.0), Lines()
    expected = fit(whole, CONFIG, tmp_path / "whole")
    found = fit(small, CONFIG, tmp_path / "small", progress=lines, ladder=ladder_of())
    for name, tensor in expected.last.tensors.items():
        torch.testing.assert_close(found.last.tensors[name], tensor, rtol=1e-5, atol=1e-6)
    told = [line for line in lines.said if "out of memory in step 6" in line]
    assert ["train.batch_size=4, train.gradient_accumulation=2" in told[0], len(told)] == [True, 2]
    assert told[1].endswith(
        "half of the micro-batch, twice as many of them from here on (train.batch_size=2, "
        "train.gradient_accumulation=4, train.gradient_checkpointing=False); no step is lost."
    )
    logged = [json.loads(line) for line in (tmp_path / "small" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if row["kind"] == "train"] == list(range(1, 13))


def test_a_run_that_stepped_down_goes_on_from_its_checkpoints(tmp_path):
    fit(Small(), CONFIG.model_copy(update={"steps": 8}), tmp_path, ladder=ladder_of())
    found = fit(Small(), CONFIG, tmp_path, resume="auto", ladder=ladder_of())
    assert found.steps == 12


def test_at_the_foot_of_the_ladder_the_error_says_what_to_change(tmp_path):
    task = Small()
    task.room = 0
    with pytest.raises(ResourceError, match="out of memory while training"):
        fit(task, CONFIG, tmp_path, ladder=[rung for rung in ladder_of() if rung.lower is halved])


def test_without_a_ladder_nothing_steps_down(tmp_path):
    with pytest.raises(ResourceError, match=r"train\.batch_size=4.*train\.vram=auto"):
        fit(Small(), CONFIG, tmp_path)


def test_an_error_that_is_no_lack_of_memory_is_raised(tmp_path):
    class Broken(Toy):
        def loss(self, batch, rng):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(Broken(), CONFIG, tmp_path, ladder=ladder_of())


def test_a_step_that_has_moved_weights_is_not_made_again(tmp_path, monkeypatch):
    from visionpeft.training.trainer import Trainer

    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Trainer, "update", full)
    with pytest.raises(ResourceError):
        fit(Toy(), CONFIG, tmp_path, ladder=ladder_of())


def test_the_rungs_in_order():
    assert lower(ladder_of(), CONFIG)[1].batch_size == 4
    odd = CONFIG.model_copy(update={"batch_size": 5})
    assert halved(odd) is None
    assert lower(ladder_of(), odd)[1].gradient_checkpointing is True
    assert recomputing(odd.model_copy(update={"gradient_checkpointing": True})) is None
    pairs = CONFIG.model_copy(update={"batch_size": 2})
    assert lower(ladder_of(pairs=True), pairs)[1].batch_size == 2
    assert lower(ladder_of(), odd.model_copy(update={"gradient_checkpointing": True})) is None
