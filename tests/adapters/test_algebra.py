"""ΔW against closed forms in float64 and against peft's own layers."""

import peft
import pytest
import torch
from torch import nn

from tests.adapters.cases import LAYERED, every_layered_method
from visionpeft.adapters.algebra import as_lora, bias_delta, compress, delta, low_rank, rotations, split_name
from visionpeft.adapters.methods import METHODS, new_branch
from visionpeft.adapters.spec import LohaSpec, LoraSpec, OftSpec, read_spec, scale_of
from visionpeft.errors import AdapterError

SETTINGS = {"oft": {"block_size": 4}, "ia3": {}}
LAYERS = {"linear": lambda: nn.Linear(12, 8), "conv": lambda: nn.Conv2d(4, 8, 3, padding=1, stride=2)}


def make(method, layer, **more):
    spec = read_spec({"method": method, **SETTINGS.get(method, {"rank": 2, "alpha": 3.0}), **more})
    torch.manual_seed(0)
    branch = new_branch(spec, "layer", layer)
    for part in branch.parts.values():
        part.data += 0.3 * torch.randn_like(part)
    return spec, branch


def peft_layer(method, layer, spec, parts):
    """The same adapter in peft's own layer."""
    holder = nn.Module()
    holder.layer = layer
    config = METHODS[method].config(spec, getattr(spec, "rank", 1), layer)
    for name in ("lora_alpha", "alpha"):
        if hasattr(config, name):
            setattr(config, name, spec.alpha)
    config.use_rslora = method == "rslora"
    peft.inject_adapter_in_model(config, holder, "x")
    named = dict(holder.layer.named_parameters())
    for name, part in parts.items():
        key = next(k for k in named if k.replace(".x", "") in (name, f"{name}.weight"))
        named[key].data.copy_(part.data)
    return holder.layer


@pytest.mark.parametrize("shape", sorted(LAYERS))
@every_layered_method
def test_delta_and_bias_are_what_peft_merges(method, shape):
    torch.manual_seed(1)
    layer = LAYERS[shape]()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    spec, branch = make(method, layer)
    change = delta(spec, branch.parts, weight)
    shift = bias_delta(spec, branch.parts, bias)
    theirs = peft_layer(method, layer, spec, branch.parts)
    theirs.merge()
    assert change.shape == weight.shape
    assert torch.allclose(layer.weight, weight + change, atol=1e-5)
    assert torch.allclose(layer.bias, bias + (0 if shift is None else shift), atol=1e-6)


@pytest.mark.parametrize("shape", sorted(LAYERS))
@every_layered_method
def test_live_output_is_what_peft_says(method, shape):
    if (method, shape) == ("oft", "conv"):
        pytest.skip("peft folds overlapping patches there, so its live output is not its own merged weight's")
    torch.manual_seed(1)
    layer = LAYERS[shape]()
    spec, branch = make(method, layer)
    x = torch.randn(3, 12) if shape == "linear" else torch.randn(3, 4, 6, 6)
    out = layer(x)
    mine = out + branch(x, out)
    assert torch.allclose(mine, peft_layer(method, layer, spec, branch.parts)(x), atol=1e-5)


@every_layered_method
def test_delta_in_closed_form_in_float64(method):
    layer = nn.Linear(12, 8)
    spec, branch = make(method, layer)
    p = {name: part.detach().double() for name, part in branch.parts.items()}
    weight = layer.weight.detach().double()
    scale = scale_of(spec, "layer")
    if method in ("lora", "rslora"):
        assert scale == 3 / (2 if method == "lora" else 2**0.5)
        expected = scale * p["lora_B.weight"] @ p["lora_A.weight"]
    elif method == "dora":
        v = weight + scale * p["lora_B.weight"] @ p["lora_A.weight"]
        expected = torch.diag(p["lora_magnitude_vector"] / v.square().sum(1).sqrt()) @ v - weight
    elif method == "loha":
        expected = scale * (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    elif method == "lokr":
        second = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
        expected = scale * torch.einsum("ab,cd->acbd", p["lokr_w1"], second).reshape(8, 12)
    elif method == "oft":
        q = torch.zeros(3, 4, 4, dtype=torch.float64)
        rows, columns = torch.triu_indices(4, 4, 1)
        q[:, rows, columns] = p["oft_R.weight"]
        q = q - q.mT
        powers = torch.eye(4).double() + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
        expected = weight @ torch.block_diag(*powers).T - weight
    else:
        expected = torch.diag(p["ia3_l"].flatten() - 1) @ weight
    assert torch.allclose(delta(spec, p, weight, path="layer"), expected, atol=1e-12)
    assert torch.allclose(delta(spec, branch.parts, layer.weight, path="layer").double(), expected, atol=1e-5)


def test_an_exact_rotation_is_orthogonal():
    r = rotations(torch.randn(3, 6, dtype=torch.float64), 0)
    assert torch.allclose(r @ r.mT, torch.eye(4, dtype=torch.float64).expand(3, 4, 4), atol=1e-12)
    layer = nn.Linear(12, 8)
    spec, branch = make("oft", layer, neumann_terms=0)
    turned = layer.weight + delta(spec, branch.parts, layer.weight)
    assert torch.allclose(turned.norm(), layer.weight.norm(), atol=1e-5)


@pytest.mark.parametrize("shape", sorted(LAYERS))
@pytest.mark.parametrize("method", ["lora", "rslora", "loha", "lokr"])
def test_low_rank_factors_are_exact(method, shape):
    layer = LAYERS[shape]()
    spec, branch = make(method, layer)
    down, up = low_rank(spec, branch.parts)
    change = delta(spec, branch.parts, layer.weight)
    assert torch.allclose(up.flatten(1) @ down.flatten(1), change.flatten(1), atol=1e-6)


def test_tucker_factors_of_other_programs_are_understood():
    parts = {
        name: torch.randn(2, 5 if name[-1] == "a" else 4)
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    }
    parts |= {"hada_t1": torch.randn(2, 2, 3, 3), "hada_t2": torch.randn(2, 2, 3, 3)}
    halves = [
        torch.einsum("ijkl,jr,ip->prkl", parts[f"hada_t{n}"], parts[f"hada_w{n}_b"], parts[f"hada_w{n}_a"])
        for n in "12"
    ]
    spec = LohaSpec(rank=2, kernels={"c": (3, 3)})
    assert torch.allclose(delta(spec, parts, path="c"), halves[0] * halves[1], atol=1e-5)


def test_compress_keeps_the_best_part():
    torch.manual_seed(0)
    down, up = torch.randn(6, 20, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    whole = up @ down
    values = torch.linalg.svdvals(whole)
    same_down, same_up = compress(down, up)
    assert torch.allclose(same_up @ same_down, whole, atol=1e-10)
    less_down, less_up = compress(down, up, rank=2)
    assert less_down.shape == (2, 20)
    assert torch.allclose((whole - less_up @ less_down).norm(), values[2:].norm(), atol=1e-9)
    share = float(values[:3].square().sum() / values.square().sum())
    assert len(compress(down, up, energy=share)[0]) == 3
    assert len(compress(down, up, energy=share + 1e-6)[0]) == 4
    assert len(compress(torch.zeros(3, 5), torch.zeros(4, 3), energy=0.9)[0]) == 1
    for bad in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}):
        with pytest.raises(AdapterError, match=r"at least 1, an energy in \(0, 1\]"):
            compress(down, up, **bad)


def test_what_needs_the_base_says_so():
    layer = nn.Linear(12, 8)
    for method in (METHODS[name] for name in LAYERED):
        spec, branch = make(method.name, layer)
        if method.needs_base:
            with pytest.raises(AdapterError, match=f"'{method.name}' changes the base weights"):
                delta(spec, branch.parts)
        else:
            assert delta(spec, branch.parts).shape == (8, 12)
        if not method.low_rank:
            with pytest.raises(AdapterError, match="not low-rank"):
                low_rank(spec, branch.parts)


def test_names_are_split_from_their_end():
    assert split_name("unet.a.lora_A.weight") == ("unet.a", "lora_A.weight")
    assert split_name("unet.lora_A.weight.ia3_l") == ("unet.lora_A.weight", "ia3_l")
    with pytest.raises(AdapterError, match="no parameter of any method"):
        split_name("unet.a.weight")


def test_factors_must_fit_their_weight():
    with pytest.raises(AdapterError, match="do not fit"):
        as_lora(torch.zeros(2, 5), torch.zeros(3, 2), (3, 4))


def test_patterns_give_single_modules_their_own_scale():
    spec = LoraSpec(rank=4, alpha=2, rank_pattern={"x": 8}, alpha_pattern={"y": 1})
    assert [scale_of(spec, path) for path in ("x", "y", "z")] == [0.25, 0.25, 0.5]
    assert scale_of(LoraSpec(rank=4, rank_pattern={"x": 8}), "x") == 1.0
    assert scale_of(OftSpec()) == 1.0
