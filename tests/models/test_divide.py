"""An adapter of DINOv2's gated layers as one matrix does to the two of today what it did to the one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.models.test_vision_families import base_of
from tests.vision_place import seeded, write_base
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import FullSpec, LoraSpec, Spec, read_spec
from visionpeft.errors import AdapterError
from visionpeft.models.base import weights_hash
from visionpeft.models.gated import divide_gated_layers
from visionpeft.models.manage import manage
from visionpeft.models.vision import load_vision

LAYER = "dinov2.encoder.layer.1.mlp"
SETTINGS = {
    "lora": {"rank": 2, "alpha": 3.0}, "dora": {"rank": 2, "alpha": 2.0}, "loha": {"rank": 2}, "ia3": {},
    "full": {}, "oft": {"block_size": 8, "neumann_terms": 0},
}  # fmt: skip


def former(method: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    """Tensors of one matrix [outputs, inputs]."""
    shapes = {
        "lora": {"lora_A.weight": (2, inputs), "lora_B.weight": (outputs, 2)},
        "dora": {"lora_A.weight": (2, inputs), "lora_B.weight": (outputs, 2), "lora_magnitude_vector": (outputs,)},
        "loha": {"hada_w1_a": (outputs, 2), "hada_w1_b": (2, inputs), "hada_w2_a": (outputs, 2),
                 "hada_w2_b": (2, inputs)},
        "ia3": {"ia3_l": (outputs, 1)},
        "full": {"weight.diff": (outputs, inputs), "bias.diff": (outputs,)},
        "oft": {"oft_R.weight": (inputs // 8, 28)},
        "lokr": {"lokr_w1": (2, 2), "lokr_w2": (outputs // 2, inputs // 2)},
    }  # fmt: skip
    generator = torch.manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes[method].items()}


def expected(method: str, parts: dict[str, Tensor], weight: Tensor) -> Tensor:
    """The adapted matrix, by the methods' papers."""
    if method == "lora":
        return weight + 1.5 * parts["lora_B.weight"] @ parts["lora_A.weight"]
    if method == "dora":
        turned = weight + parts["lora_B.weight"] @ parts["lora_A.weight"]
        return parts["lora_magnitude_vector"][:, None] * turned / turned.norm(dim=1, keepdim=True)
    if method == "loha":
        return weight + (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    if method == "ia3":
        return weight * parts["ia3_l"]
    if method == "full":
        return weight + parts["weight.diff"]
    rotations = []
    for row in parts["oft_R.weight"]:
        skew = torch.zeros(8, 8)
        skew[*torch.triu_indices(8, 8, 1)] = row
        skew = skew - skew.T
        rotations.append((torch.eye(8) + skew) @ torch.linalg.inv(torch.eye(8) - skew))
    return weight @ torch.block_diag(*rotations)


def spec_of(method: str) -> Spec:
    path = f"{LAYER}.weights_in"
    return read_spec({"method": method, "targets": (path,), **SETTINGS.get(method, {})})


@pytest.mark.parametrize("method", SETTINGS)
def test_each_layer_gets_its_rows(method: str):
    base = base_of("dinov2_swiglu")
    gate, up = (base.model.get_submodule(f"{LAYER}.{name}_proj") for name in ("gate", "up"))
    weight = torch.cat([gate.weight, up.weight]).detach().clone()
    parts = former(method, *weight.shape)
    keys = {f"model.{LAYER}.weights_in.{name}": tensor for name, tensor in parts.items()}
    manager = manage(base)
    manager.attach("old", Adapter({"model": spec_of(method)}, keys))
    manager.merge("old")
    merged = torch.cat([base.model.get_submodule(f"{LAYER}.{name}_proj").weight for name in ("gate", "up")])
    torch.testing.assert_close(merged, expected(method, parts, weight), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(merged, weight, atol=1e-2)


def test_ranks_of_its_own_go_along():
    base = base_of("dinov2_swiglu")
    path = f"{LAYER}.weights_in"
    width = base.model.get_submodule(f"{LAYER}.gate_proj").weight.shape
    parts = former("lora", 2 * width[0], width[1])
    spec = LoraSpec(rank=8, targets=(path,), rank_pattern={path: 2}, alpha_pattern={path: 6.0})
    manager = manage(base)
    manager.attach("old", Adapter({"model": spec}, {f"model.{path}.{name}": one for name, one in parts.items()}))
    now = manager.capture("old").specs["model"]
    both = {f"{LAYER}.gate_proj", f"{LAYER}.up_proj"}
    assert set(now.rank_pattern) == set(now.alpha_pattern) == set(now.targets) == both


def test_what_has_no_rows_is_refused():
    base = base_of("dinov2_swiglu")
    width = base.model.get_submodule(f"{LAYER}.gate_proj").weight.shape
    keys = {f"model.{LAYER}.weights_in.{name}": one for name, one in former("lokr", 2 * width[0], width[1]).items()}
    with pytest.raises(AdapterError, match=r"lokr_w1' is of a layer that is 2 layers in this version"):
        manage(base).attach("old", Adapter({"model": spec_of("lokr")}, keys))


def test_other_families_are_left_alone():
    base = base_of("vit")
    manager = manage(base)
    manager.add("a", FullSpec())
    value = manager.capture("a")
    assert base.family.divided(value, {"model": base.model}).tensors.keys() == value.tensors.keys()


class Former(nn.Module):
    """What transformers had before 5.18: the gate and what it opens as the halves of one layer's output."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.weights_in = nn.Linear(gate.in_features, 2 * gate.out_features)
        self.weights_in.weight = nn.Parameter(torch.cat([gate.weight, up.weight]).detach())
        self.weights_in.bias = nn.Parameter(torch.cat([gate.bias, up.bias]).detach())
        self.weights_out = down

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.weights_in(x).chunk(2, dim=-1)
        return self.weights_out(nn.functional.silu(gate) * up)


def as_of_old(model: nn.Module) -> nn.Module:
    """The model as transformers before 5.18 builds it."""
    for path, part in list(model.named_modules()):
        if hasattr(part, "gate_proj"):
            above, _, name = path.rpartition(".")
            setattr(model.get_submodule(above), name, Former(part.gate_proj, part.up_proj, part.down_proj))
    return model


def test_a_base_of_an_earlier_version_has_the_layers_of_today():
    new = base_of("dinov2_swiglu")
    old = as_of_old(base_of("dinov2_swiglu").model)
    assert any("weights_in" in name for name, _ in old.named_parameters())
    pixels = seeded(2, 3, 32, 32)
    with torch.no_grad():
        expected = old(pixel_values=pixels).logits
        divide_gated_layers(old)
        torch.testing.assert_close(old(pixel_values=pixels).logits, expected)
    assert [name for name, _ in old.named_parameters()] == [name for name, _ in new.model.named_parameters()]
    assert weights_hash({"model": old}, new.family) == weights_hash({"model": new.model}, new.family)
    assert manage(old).add("a", LoraSpec(targets="mlp")).modules == {"model": 6}


def test_a_model_that_has_them_as_one_takes_its_own_adapters_back():
    model = as_of_old(base_of("dinov2_swiglu").model)
    manager = manage(model)
    manager.add("a", LoraSpec(rank=2, targets="mlp"))
    with torch.no_grad():
        for parameter in manager.trainable("a")["model"]:
            parameter.add_(seeded(*parameter.shape))
    value = manager.capture("a")
    assert sum("weights_in" in key for key in value.tensors) == 4
    manager.swap("a", value)
    manager.remove("a")
    manager.attach("a", value)
    again = manager.capture("a").tensors
    assert all(torch.equal(again[key], tensor) for key, tensor in value.tensors.items())


def test_a_base_on_the_disk_is_divided_as_its_adapters_are(tmp_path: Path):
    """transformers reads the former layout by a table of its own: the gate's rows first there too."""
    place = write_base(tmp_path, "dinov2_swiglu")
    file = place / "model.safetensors"
    stored = load_file(file)
    for path in {key.rpartition(".mlp.")[0] for key in stored if ".mlp.gate_proj" in key}:
        for name in ("weight", "bias"):
            gate, up = (stored.pop(f"{path}.mlp.{one}_proj.{name}") for one in ("gate", "up"))
            stored[f"{path}.mlp.weights_in.{name}"] = torch.cat([gate, up])
            stored[f"{path}.mlp.weights_out.{name}"] = stored.pop(f"{path}.mlp.down_proj.{name}")
    assert sum("weights_in" in key for key in stored) == 4
    save_file(stored, file, {"format": "pt"})
    read, whole = load_vision(place, task="classify").model, base_of("dinov2_swiglu").model
    for name in ("gate_proj", "up_proj", "down_proj"):
        path = f"dinov2.encoder.layer.1.mlp.{name}"
        assert torch.equal(read.get_submodule(path).weight, whole.get_submodule(path).weight), name
