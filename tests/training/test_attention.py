"""The kernel that a run attends with: named, refused, seen by every pass, and leaving no trace in the steps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

from tests.tasks.conftest import Lines
from tests.training.test_real_task import CONFIG, make  # noqa: F401 - a fixture
from visionpeft.compute.attending import Shape
from visionpeft.errors import ConfigError
from visionpeft.tasks.dreambooth import DreamBooth
from visionpeft.training.attention import calls_of
from visionpeft.training.engine import fit

FLASH = int(SDPBackend.FLASH_ATTENTION.value)
FORWARD = {(256, 256): 6, (256, 77): 6, (64, 64): 2, (64, 77): 2}
"""Calls of the tiny UNet by tokens, for the subject's pictures and for the class's."""
EFFICIENT = int(SDPBackend.EFFICIENT_ATTENTION.value)


class Watching(DreamBooth):
    """Notes which kernel comes first in each pass."""

    def __init__(self, *given):
        super().__init__(*given)
        self.first: list[tuple[str, int]] = []

    def loss(self, batch, rng):
        out = super().loss(batch, rng)
        if torch.is_grad_enabled():
            self.first.append(("forward", self._order()))
            out.loss_sum.register_hook(lambda gradient: self.first.append(("backward", self._order())))
        return out

    def evaluate(self, step):
        self.first.append(("evaluate", self._order()))
        return {"score": 1.0, "eligible": 1.0}

    def _order(self) -> int:
        return torch._C._get_sdp_priority_order()[0]


def test_a_named_kernel_comes_first_in_every_pass_and_is_said(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    from visionpeft.training import attention

    monkeypatch.setattr(attention, "require_working", lambda name, device: None)
    task, lines = make(Watching), Lines()
    config = CONFIG.model_copy(update={"attention": "efficient", "evaluate_every": 2, "steps": 2})
    before = torch._C._get_sdp_priority_order()
    fit(task, config, tmp_path / "run", progress=lines)
    assert {name for name, _ in task.first} == {"forward", "backward", "evaluate"}
    assert {order for _, order in task.first} == {EFFICIENT}
    assert torch._C._get_sdp_priority_order() == before
    (said,) = [line for line in lines.said if line.startswith("attention")]
    assert said.startswith("attention: efficient, as set, for 18 calls of a step; 18 have a mask, width or type")


def test_naming_what_is_used_anyway_changes_no_bit_and_auto_is_silent(make, tmp_path: Path):  # noqa: F811
    found = []
    for name, count in (("auto", 0), ("sdpa", 0), ("flash", 1)):
        lines = Lines()
        config = CONFIG.model_copy(update={"attention": name, "steps": 2})
        found.append(fit(make(DreamBooth), config, tmp_path / name, progress=lines).adapter.tensors)
        assert sum(line.startswith("attention") for line in lines.said) == count
    assert all(torch.equal(value, other[key]) for other in found[1:] for key, value in found[0].items())


def test_what_does_not_work_here_stops_the_run_before_its_first_step(make, tmp_path: Path):  # noqa: F811
    with pytest.raises(ConfigError, match=r"train\.attention: cudnn does not work on cpu"):
        fit(make(DreamBooth), CONFIG.model_copy(update={"attention": "cudnn"}), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("step_*"))


def test_the_calls_of_a_batch_are_the_losss_own(make, tmp_path: Path):  # noqa: F811
    task = make(DreamBooth)
    fit(task, CONFIG.model_copy(update={"steps": 1}), tmp_path / "run")
    from visionpeft.compute.precision import precision_of
    from visionpeft.data.order import positions

    device = torch.device("cpu")
    state = torch.get_rng_state()
    calls = calls_of(task, 0, positions(0, 3, 0, 2), precision_of("fp32", device), device)
    assert torch.equal(torch.get_rng_state(), state)
    mine = Counter[tuple[int, int]]()
    for shape, count in calls.items():
        mine[shape.queries, shape.keys] += count * (not shape.causal)
    assert {sides: count for sides, count in mine.items() if count} == FORWARD
    assert any(isinstance(shape, Shape) and shape.causal for shape in calls)


def test_another_processs_samples_are_looked_at_as_well(make, tmp_path: Path):  # noqa: F811
    task = make(DreamBooth)
    fit(task, CONFIG.model_copy(update={"steps": 1}), tmp_path / "run")
    from visionpeft.compute.precision import precision_of
    from visionpeft.data.order import positions

    device, whole = torch.device("cpu"), positions(0, 3, 0, 4)
    first, second = (calls_of(task, 0, mine, precision_of("fp32", device), device) for mine in (whole[:2], whole[2:]))
    assert first == second
