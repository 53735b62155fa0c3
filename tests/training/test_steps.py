"""Recorded steps, with a recorder that needs no GPU: what it records is done again, from the same places."""

import pytest
import torch

from tests.training.test_resume import FULL, Listening, everything
from tests.training.toy import Toy
from visionpeft.compute.recorded import NotRecordableError, Recording
from visionpeft.training import prepared, steps
from visionpeft.training.engine import fit
from visionpeft.training.rng import StandingRng, StepRng


class Replaying:
    """Stands for a GPU's recorder."""

    def __init__(self, refuses=()):
        self.recorded, self.refuses = 0, refuses

    def recording(self, work):
        def recorded(work):
            if self.recorded in self.refuses:
                raise NotRecordableError("it waits for the device")
            self.recorded += 1
            return work

        return Recording(work, lambda work: work(), recorded)


@pytest.fixture
def recorders(monkeypatch):
    """Let every run record, with the recorder that a test puts into the list."""
    given = []

    class Recorded(steps.Steps):
        def __init__(self, task, trainer, *others):
            trainer.recordable = True
            for group in trainer.optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"])
            super().__init__(task, trainer, *others[:-1], given[-1] if given else None)

    monkeypatch.setattr(prepared, "Steps", Recorded)
    return given


class Uneven(Toy):
    """Batches of two forms."""

    def batch(self, positions):
        tensors = super().batch(positions)
        return tensors if positions[0].index % 2 else tuple(tensor.double() for tensor in tensors)

    def loss(self, batch, rng):
        return super().loss(tuple(tensor.float() for tensor in batch), rng)


@pytest.mark.parametrize("kind", [Toy, Uneven])
def test_recorded_steps_are_the_same_to_the_last_bit(tmp_path, recorders, kind):
    fit(kind(), FULL, tmp_path / "eager")
    recorders.append(Replaying())
    fit(kind(), FULL, tmp_path / "recorded")
    assert everything(tmp_path / "recorded") == everything(tmp_path / "eager")
    assert recorders[-1].recorded == (2 if kind is Toy else 3), "each form of batches, and the end of a step"


@pytest.mark.parametrize("refused", [0, 1])
def test_what_cannot_be_recorded_is_done_as_it_is_and_said(tmp_path, recorders, refused):
    fit(Toy(), FULL, tmp_path / "eager")
    recorders.append(Replaying(refuses=(refused,)))
    progress = Listening()
    fit(Toy(), FULL, tmp_path / "recorded", progress=progress)
    assert everything(tmp_path / "recorded") == everything(tmp_path / "eager")
    assert [line for line in progress.lines if "not recorded" in line] == [
        "steps are not recorded, which makes them slower: it waits for the device"
    ]


class Loose(Toy):
    """Batches that hold a set."""

    def batch(self, positions):
        return (*super().batch(positions), {1, 2})

    def loss(self, batch, rng):
        return super().loss(batch[:3], rng)


def test_batches_without_a_form_are_not_recorded(tmp_path, recorders):
    fit(Toy(), FULL, tmp_path / "eager")
    recorders.append(Replaying())
    progress = Listening()
    fit(Loose(), FULL, tmp_path / "recorded", progress=progress)
    assert everything(tmp_path / "recorded") == everything(tmp_path / "eager")
    assert len(progress.lines) == 1
    assert "has no fixed form (unhashable type: 'set')" in progress.lines[0]


def test_a_task_says_that_it_cannot_be_recorded(tmp_path, recorders):
    recorders.append(Replaying())
    progress = Listening()
    fit(Toy(unrecordable="toys roll away"), FULL, tmp_path, progress=progress)
    assert progress.lines == ["steps are not recorded, which makes them slower: toys roll away"]
    assert recorders[-1].recorded == 0


def test_so_many_forms_are_recorded_and_no_more(tmp_path, recorders, monkeypatch):
    monkeypatch.setattr(steps, "_MOST_FORMS", 1)
    fit(Uneven(), FULL, tmp_path / "eager")
    recorders.append(Replaying())
    progress = Listening()
    fit(Uneven(), FULL, tmp_path / "recorded", progress=progress)
    assert everything(tmp_path / "recorded") == everything(tmp_path / "eager")
    assert recorders[-1].recorded == 2
    assert progress.lines == ["batches come in many shapes: 1 are recorded, further ones are not."]


def test_standing_draws_stay_in_place_and_are_those_of_the_step():
    slots = torch.tensor([2, 0])

    def rng(step):
        return StepRng(7, step, slots, 4, torch.device("cpu"))

    def draws(source):
        return source.normal((3,)), source.normal((2, 2), "other"), source.uniform("u"), source.integers(9, "i")

    standing = StandingRng(rng(0))
    first = draws(standing)
    for step in range(3):
        standing.renew(rng(step))
        assert all(kept is drawn for kept, drawn in zip(first, draws(standing), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first, draws(rng(step)), strict=True))
