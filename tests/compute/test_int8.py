"""Linear layers of 8-bit integers, against float64 and by their memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.tiny_speech import new_whisper
from visionpeft.adapters.spec import DoraSpec, FullSpec, LoraSpec
from visionpeft.compute.int8 import Int8Linear, quantize_linear
from visionpeft.errors import AdapterError
from visionpeft.models.manage import manage


def test_weights_are_rounded_to_half_a_step_and_products_are_theirs():
    layer = nn.Linear(48, 24)
    small = Int8Linear(layer)
    assert small.weight.dtype == torch.int8
    step = layer.weight.abs().amax(1) / 127
    whole = small.weight.double() * small.scale.double()[:, None]
    assert ((whole - layer.weight.double()).abs() <= 0.5001 * step.double()[:, None]).all()
    x = torch.randn(5, 48, requires_grad=True)
    out = small(x)
    assert torch.allclose(out.double(), x.double() @ whole.T + layer.bias.double(), atol=1e-5)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert torch.allclose(gradient.double(), (2 * out.double()) @ whole, atol=1e-4)


def test_a_row_of_zeros_stays_zero():
    layer = nn.Linear(4, 3, bias=False)
    layer.weight.data[1] = 0
    assert torch.equal(Int8Linear(layer)(torch.ones(1, 4))[0, 1], torch.tensor(0.0))


def test_scales_stay_float32_and_nothing_large_is_kept_for_the_gradient():
    layer = Int8Linear(nn.Linear(64, 64)).to(torch.bfloat16)
    assert layer.scale.dtype == torch.float32
    assert layer.weight.dtype == torch.int8
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, 64, dtype=torch.bfloat16, requires_grad=True))
    assert all(tensor.dtype != torch.bfloat16 or tensor.numel() < 64 * 64 for tensor in kept)


def test_it_computes_in_autocasts_type():
    layer = Int8Linear(nn.Linear(8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16


def quantized():
    model = new_whisper().eval()
    return model, quantize_linear(model)


def test_a_whisper_says_nearly_the_same_and_its_words_stay():
    model, count = quantized()
    assert count == 32
    assert type(model.proj_out) is nn.Linear
    whole = new_whisper().eval()
    inputs = {"input_features": torch.randn(1, 80, 200), "decoder_input_ids": torch.tensor([[1, 2, 3]])}
    with torch.no_grad():
        first, other = whole(**inputs).logits, model(**inputs).logits
    assert torch.nn.functional.cosine_similarity(first.flatten(), other.flatten(), dim=0) > 0.995
    assert not torch.equal(first, other)


def test_lora_trains_on_it_and_merging_is_refused():
    model, _ = quantized()
    manager = manage(model)
    manager.add("a", LoraSpec(rank=2))
    for parameter in manager.parameters("a").values():
        parameter.data += 0.1
    model(input_features=torch.randn(1, 80, 200), decoder_input_ids=torch.tensor([[1, 2]])).logits.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in manager.trainable("a")["model"])
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match="quantized"):
        manager.merge()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("spec", [DoraSpec(rank=2), LoraSpec(rank=2, init="pissa"), FullSpec()])
def test_what_needs_the_weights_refuses(spec):
    with pytest.raises(AdapterError, match=r"quantized|integers"):
        manage(quantized()[0]).add("a", spec)
