"""Frozen layers in 8 and 4 bits: their products and gradients, what is coded, and that adapters work on them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from tests.tiny import tiny_sd1, tiny_sdxl, tiny_vit
from tests.tiny_speech import new_whisper
from visionpeft.adapters.coded import Coded
from visionpeft.adapters.layers import AdaptedLayer
from visionpeft.adapters.methods import is_quantized
from visionpeft.adapters.spec import DoraSpec, FullSpec, LoraSpec, OftSpec
from visionpeft.compute.codes import CODES, Int8, Nf4
from visionpeft.compute.quantized import CodedConv2d, CodedLinear, coded, large_layers, quantize
from visionpeft.errors import AdapterError, ConfigError
from visionpeft.models.manage import manage

CPU = torch.device("cpu")
LAYERS = {
    "linear": (lambda: nn.Linear(64, 48), (5, 7, 64)),
    "linear without bias": (lambda: nn.Linear(64, 48, bias=False), (5, 64)),
    "conv1d": (lambda: nn.Conv1d(32, 48, 3, stride=2, padding=1), (2, 32, 11)),
    "conv2d": (lambda: nn.Conv2d(32, 64, 3, stride=2, padding=1), (2, 32, 9, 8)),
    "conv2d, groups and dilation": (lambda: nn.Conv2d(64, 64, 3, padding=2, dilation=2, groups=2), (2, 64, 6, 7)),
}


def quantized(name: str = "int8", model: nn.Module | None = None):
    model = (model or new_whisper().eval()).requires_grad_(False)
    return model, quantize([model], name, CPU, None)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("kind", LAYERS)
def test_products_and_gradients_are_those_of_the_weight_that_it_says(name: str, kind: str):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make()
    small = coded(layer, name)
    assert isinstance(small, type(layer))
    assert is_quantized(small)
    assert repr(small).partition("(")[2] == repr(layer).partition("(")[2]
    plain = copy.deepcopy(layer)
    assert small.weight.shape == plain.weight.shape
    assert not torch.equal(small.weight, plain.weight)
    plain.weight.data = small.weight.contiguous()
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    out, expected = small(x), plain(y)
    assert torch.allclose(out, expected, atol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-4)


@pytest.mark.parametrize("name", CODES)
def test_codes_and_scales_stay_whatever_the_model_is_turned_to(name: str):
    layer = coded(nn.Linear(64, 64), name)
    before = {key: value.clone() for key, value in layer.state_dict().items() if key != "bias"}
    layer.to(torch.bfloat16).half()
    assert layer.weight.dtype == torch.float16
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in before.items())
    assert all(value.dtype == layer.state_dict()[key].dtype for key, value in before.items())
    assert layer.bias.dtype == torch.float16
    twin = coded(nn.Linear(64, 64), name)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.half().weight, layer.weight)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_nothing_large_is_kept_for_the_gradient(name: str, kind: str):
    make, shape = LAYERS[kind]
    layer = coded(make(), name).to(torch.bfloat16)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(shape, dtype=torch.bfloat16, requires_grad=True))
    assert {id(tensor) for tensor in kept} <= {id(tensor) for tensor in layer.stored()}


def test_it_computes_in_autocasts_type():
    for make, shape in LAYERS.values():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert coded(make(), "nf4")(torch.randn(shape)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", CODES)
def test_made_convolutions_lie_channels_last(name: str):
    layer = coded(LAYERS["conv2d"][0](), name)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_it_compiles_whole(name: str, kind: str):
    make, shape = LAYERS[kind]
    layer = coded(make(), name)
    x = torch.randn(shape, requires_grad=True)
    out = layer(x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    torch._dynamo.reset()
    again = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert torch.allclose(out, again, atol=1e-6)
    assert torch.allclose(gradient, torch.autograd.grad(again.square().sum(), x)[0], atol=1e-5)


def test_a_whisper_says_nearly_the_same_and_its_words_stay():
    model, found = quantized()
    assert found.layers == 34  # 32 linear layers, and the two convolutions that it hears with
    assert found.after < 0.3 * found.before
    assert type(model.proj_out) is nn.Linear
    whole = new_whisper().eval()
    inputs = {"input_features": torch.randn(1, 80, 200), "decoder_input_ids": torch.tensor([[1, 2, 3]])}
    with torch.no_grad():
        first, other = whole(**inputs).logits, model(**inputs).logits
    assert F.cosine_similarity(first.flatten(), other.flatten(), dim=0) > 0.995
    assert not torch.equal(first, other)


def test_of_a_unet_the_ends_stay_and_the_line_counts():
    unet = tiny_sd1().unet.requires_grad_(False)
    layers = large_layers(unet)
    assert unet.conv_in not in layers
    assert unet.conv_out not in layers
    assert {type(layer) for layer in layers} == {nn.Linear, nn.Conv2d}
    count = len(layers)
    weights = sum(layer.weight.numel() for layer in layers)
    found = quantize([unet], "nf4", CPU, torch.bfloat16)
    assert (found.layers, found.weights, found.before) == (count, weights, 2 * weights)
    assert found.line("nf4").startswith(f"{count} layers of the base are kept in nf4 (convolutions in int8): ")
    assert {type(m.code) for m in unet.modules() if isinstance(m, CodedConv2d)} == {Int8}
    assert len({m.table.data_ptr() for m in unet.modules() if isinstance(m, CodedLinear)}) == 1
    stored = {id(tensor): tensor.nbytes for m in unet.modules() if isinstance(m, Coded) for tensor in m.stored()}
    assert found.after == sum(stored.values())
    assert {type(m.code) for m in unet.modules() if isinstance(m, CodedLinear)} == {Nf4}
    assert sum(isinstance(module, Coded) for module in unet.modules()) == count
    assert unet.dtype == torch.float32


@pytest.mark.parametrize("name", CODES)
def test_layers_beneath_adapters_are_coded_and_train_alike(name: str):
    """Coding beneath an adapter, which is how runs do it, gives what an adapter on coded layers gives."""
    torch.manual_seed(0)
    pipelines = tiny_sdxl(), tiny_sdxl()
    one, other = (pipeline.unet for pipeline in pipelines)
    spec = {"unet": LoraSpec(rank=2, targets=("all-linear", "conv"))}
    first = manage(pipelines[0])
    first.add("a", spec)
    quantize([one], name, CPU, None)
    quantize([other.requires_grad_(False)], name, CPU, None)
    second = manage(pipelines[1])
    second.add("a", spec)
    for manager in (first, second):
        for number, parameter in enumerate(manager.parameters("a").values()):
            torch.manual_seed(number)
            parameter.data += 0.02 * torch.randn(parameter.shape)
    inputs = {
        "sample": torch.randn(1, 4, 16, 16), "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 5, 64),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 32), "time_ids": torch.ones(1, 6)},
    }  # fmt: skip
    outs = [unet(**inputs).sample for unet in (one, other)]
    assert torch.equal(*outs)
    gradients = []
    for out, manager in zip(outs, (first, second), strict=True):
        out.square().sum().backward()
        gradients.append({key: p.grad for key, p in manager.parameters("a").items()})
    assert all(value is not None and torch.equal(value, gradients[1][key]) for key, value in gradients[0].items())
    first.remove("a")
    assert not any(isinstance(module, AdaptedLayer) for module in one.modules())
    assert sum(isinstance(module, Coded) for module in one.modules()) > 50


@pytest.mark.parametrize("name", CODES)
def test_the_joined_product_is_that_of_the_layers_one_by_one(name: str):
    torch.manual_seed(0)
    vit = tiny_vit()
    manager = manage(vit)
    manager.add("a", LoraSpec(rank=2, targets="attention"))
    quantize([vit], name, CPU, None)
    adapted = next(m for m in vit.modules() if isinstance(m, AdaptedLayer) and isinstance(m.base, CodedLinear))
    for parameter in adapted.branch("a").parts.values():
        parameter.data.normal_()
    x = torch.randn(3, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = adapted(x)
    parts = adapted.branch("a").parts
    change = adapted.branch("a").scale * parts["lora_B.weight"] @ parts["lora_A.weight"]
    expected = F.linear(x, adapted.base.weight + change, adapted.base.bias)
    assert "LowRankLinear" in type(out.grad_fn).__name__ or "LowRankLinear" in str(out.grad_fn.next_functions)
    assert torch.allclose(out.float(), expected, atol=0.1, rtol=0.02)
    (mine,) = torch.autograd.grad(out.float().sum(), x)
    (theirs,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(mine, theirs, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("spec", [DoraSpec(rank=2), LoraSpec(rank=2, init="pissa"), OftSpec(block_size=4)])
def test_methods_that_need_the_weight_see_the_one_that_is_made(spec):
    """Under an adapter that was put on whole weights, the coded layer stands for its own weight."""
    model = new_whisper().eval()
    manager = manage(model)
    manager.add("a", spec)
    torch.manual_seed(0)
    for parameter in manager.parameters("a").values():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    quantize([model], "nf4", CPU, None)
    slots = [m for m in model.modules() if isinstance(m, AdaptedLayer)]
    for slot in slots[:4]:
        x = torch.randn(3, slot.base.in_features)
        change = slot.branch("a").changes(slot.base)["weight"]
        assert torch.allclose(slot(x), F.linear(x, slot.base.weight + change, slot.base.bias), atol=1e-4)


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
def test_what_needs_the_weights_refuses_to_begin_on_codes(spec):
    with pytest.raises(AdapterError, match=r"quantized|integers"):
        manage(quantized()[0]).add("a", spec)


def test_full_tuning_and_small_models_are_refused():
    model = new_whisper().eval()
    manage(model).add("a", FullSpec())
    with pytest.raises(ConfigError, match="full tuning changes the weights"):
        quantize([model], "int8", CPU, None)
    with pytest.raises(ConfigError, match="no layer of this base is large enough"):
        quantize([nn.Sequential(nn.Linear(4, 4))], "int8", CPU, None)


def test_a_module_in_two_places_stays_one():
    shared = nn.Linear(64, 64).requires_grad_(False)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert quantize([model], "int8", CPU, None).layers == 1
    assert model[0] is model[2]
    assert isinstance(model[0], CodedLinear)


@pytest.mark.parametrize("name", CODES)
def test_shapes_alone_tell_the_bytes(name: str):
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(256, 256), nn.Conv2d(32, 64, 3)).requires_grad_(False)

    real = quantize([model()], name, CPU, torch.bfloat16)
    with torch.device("meta"):
        empty = model()
    assert quantize([empty], name, torch.device("meta"), torch.bfloat16) == real
    with FakeTensorMode():
        fake = model()
        assert quantize([fake], name, CPU, torch.bfloat16) == real
        x = torch.randn(3, 256, requires_grad=True)
        fake[0](x).sum().backward()
        assert x.grad is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CODES)
def test_it_is_recorded_on_a_gpu(name: str):
    layer = coded(nn.Linear(256, 256), name, torch.device("cuda")).to("cuda", torch.bfloat16)
    x = torch.randn(8, 256, device="cuda", dtype=torch.bfloat16)
    expected = layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x)
    graph.replay()
    assert torch.allclose(out, expected)
