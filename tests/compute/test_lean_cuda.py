"""What only a GPU can show: copies beside the computation, recorded with it, and memory that is really free."""

import pytest
import torch

from visionpeft.compute import offload
from visionpeft.compute.blocks import blocks_of
from visionpeft.compute.lean import Lean
from visionpeft.compute.recorded import Recorder
from visionpeft.compute.streaming import frozen_tensors

from .lean_models import case
from .test_lean import WAYS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu():
    """A UNet with its adapter's parameters and what a step of it does, all of it where it stays."""
    device = torch.device("cuda")
    model, manager, _ = case("sd1")
    draw = torch.Generator(device).manual_seed(0)
    noisy = torch.randn(2, 4, 16, 16, device=device, generator=draw)
    states = torch.randn(2, 77, 32, device=device, generator=draw)
    times = torch.tensor([10, 600], device=device)
    parameters = list(manager.parameters("a").values())

    def say():
        return model(noisy, times, states).sample

    def work():
        for parameter in parameters:
            parameter.grad.zero_()
        say().square().sum().backward()

    return device, model, parameters, say, work


@pytest.mark.parametrize("way", WAYS)
def test_recorded_steps_have_the_same_gradients(way, monkeypatch):
    monkeypatch.setattr(offload, "_LEAST", 1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device, model, parameters, say, work = on_gpu()
    model.to(device)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    work()
    plain = [parameter.grad.clone() for parameter in parameters]
    with torch.no_grad():
        seen = say()
    Lean(model, device, WAYS[way])
    recording = Recorder(device).recording(work)
    for number in range(6):
        recording.run()
        torch.testing.assert_close([p.grad for p in parameters], plain, rtol=1e-3, atol=1e-3)
        if number in (1, 3):  # as previews between steps do
            with torch.no_grad():
                torch.testing.assert_close(say(), seen, rtol=1e-3, atol=1e-3)


def test_streamed_weights_are_pinned_and_the_rest_is_on_the_gpu():
    before = torch.cuda.memory_allocated()
    device, model, parameters, *_ = on_gpu()
    lean = Lean(model, device, WAYS["stream"])
    lean.move(device)
    streamed = [t for block in blocks_of(model).values() for t in frozen_tensors(block)]
    assert all(t.is_pinned() and t.device.type == "cpu" for t in streamed)
    assert all(p.device.type == "cuda" for p in parameters)
    assert model.conv_in.weight.device.type == "cuda"
    assert torch.cuda.memory_allocated() - before < lean.streaming.bytes + lean.streaming.slot_bytes
    lean.undo()
    assert all(t.device.type == "cuda" for t in streamed)
