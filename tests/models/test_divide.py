"""An adapter of DINOv2's gated layers as one matrix does to the two of today what it did to the one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.test_vision_families import base_of
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import FullSpec, LoraSpec, Spec, read_spec
from visionpeft.errors import AdapterError
from visionpeft.models.manage import manage

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
    assert base.family.divided(value).tensors.keys() == value.tensors.keys()
