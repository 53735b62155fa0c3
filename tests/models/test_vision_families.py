"""Every vision family with every target: how many layers, training, nothing changed at first, capture and attach."""

import re

import pytest
import torch

from tests.tiny_vision import CONFIGS, DETECTORS, available, sides_of, tiny_vision
from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError, TargetError
from visionpeft.models.family import families, family_of
from visionpeft.models.gated import divide_gated_layers
from visionpeft.models.manage import manage
from visionpeft.models.norms import freeze_batch_norms
from visionpeft.models.preprocess import Preprocessing
from visionpeft.models.vision import VisionBase

PLAIN = ("vit", "deit", "beit", "dinov2", "dinov2_registers", "dinov3", "siglip", "clip", "clip_tower")
_VIT = {
    "attention": 8,
    "attention.q": 2,
    "attention.out": 2,
    "self-attention": 8,
    "mlp": 4,
    "conv": 1,
    "all-linear": 12,
}
_RT_DETR = {
    "attention": 16, "attention.q": 3, "attention.v": 5, "self-attention": 12, "cross-attention": 4,
    "deformable-attention": 8, "mlp": 6, "conv": 60, "backbone": 18, "encoder": 42, "decoder": 22, "transformer": 64,
    "backbone.conv": 18, "encoder.attention": 4, "encoder.mlp": 2, "encoder.conv": 36, "decoder.attention": 12,
    "decoder.mlp": 4, "decoder.deformable-attention": 8, "boxes": 9, "all-linear": 29,
}  # fmt: skip
_DETR = {
    "attention": 24, "attention.k": 6, "self-attention": 16, "cross-attention": 8, "mlp": 8, "conv": 17,
    "backbone": 16, "encoder": 12, "decoder": 20, "transformer": 32, "backbone.conv": 16, "encoder.attention": 8,
    "encoder.mlp": 4, "decoder.attention": 16, "decoder.cross-attention": 8, "decoder.mlp": 4,
    "transformer.attention": 24, "boxes": 3, "all-linear": 32,
}  # fmt: skip
_DEFORMABLE = {
    "attention": 16, "attention.v": 6, "deformable-attention": 16, "encoder.deformable-attention": 8,
    "decoder.deformable-attention": 8, "decoder.self-attention": 8, "encoder.mlp": 4, "backbone": 16,
}  # fmt: skip
COUNTS = {
    **dict.fromkeys(PLAIN, _VIT),
    "dinov2_swiglu": {**_VIT, "mlp": 6, "all-linear": 14},
    "swin": {"attention": 12, "attention.v": 3, "mlp": 6, "conv": 1, "all-linear": 19},
    "convnext": {"mlp": 8, "conv": 4, "all-linear": 8},
    "resnet": {"conv": 16},
    "detr": _DETR,
    "conditional_detr": {"attention": 33, "attention.q": 11, "decoder.attention": 25, "encoder.attention": 8, "mlp": 8},
    "deformable_detr": {**_DEFORMABLE, "boxes": 6},
    "deformable_detr_two_stage": {**_DEFORMABLE, "boxes": 18},
    "rt_detr": _RT_DETR,
    "rt_detr_v2": _RT_DETR,
    "d_fine": {
        "attention": 12, "deformable-attention": 4, "mlp": 6, "backbone": 21, "backbone.conv": 21, "encoder.conv": 84,
        "encoder.attention": 4, "decoder.attention": 8, "decoder.mlp": 4, "boxes": 12, "all-linear": 27,
    },
    "yolos": {"attention": 8, "mlp": 4, "encoder": 12, "encoder.attention": 8, "transformer.mlp": 4, "boxes": 3},
    "rf_detr": {
        "attention": 20, "backbone.attention": 8, "backbone.mlp": 4, "decoder.attention": 12, "decoder.mlp": 4,
        "decoder.deformable-attention": 8, "boxes": 9,
    },
}  # fmt: skip

TRAINED = ("attention", "mlp", "conv", "deformable-attention", "boxes")
CASES = [(name, target) for name, counts in COUNTS.items() for target in TRAINED if target in counts]
SOLVED = {"clip_tower": "clip", "dinov2_registers": "dinov2", "dinov2_swiglu": "dinov2"}


def base_of(name):
    if not available(name):
        pytest.skip(f"this transformers has no {CONFIGS[name][0]}")
    model = tiny_vision(name)
    freeze_batch_norms(model)
    divide_gated_layers(model)
    side = sides_of(name)
    return VisionBase(model, family_of(model), f"tiny/{name}", "0" * 64, Preprocessing(size=(side, side)))


def run(base):
    side = base.preprocessing.size[0]
    out = base.model(pixel_values=torch.randn(2, 3, side, side, generator=torch.manual_seed(1)))
    return torch.cat([out.logits.flatten(), *([out.pred_boxes.flatten()] if hasattr(out, "pred_boxes") else [])])


@pytest.mark.parametrize("name", CONFIGS)
def test_families_are_recognised_and_have_their_head(name):
    base = base_of(name)
    assert sum(family.of(base.model) is not None for family in families()) == 1
    assert base.family.name == SOLVED.get(name, name.removesuffix("_two_stage"))
    assert base.sight.task == ("detect" if name in DETECTORS else "classify")
    assert all(any(True for _ in base.model.get_submodule(path).parameters()) for path in base.sight.heads(base.model))
    if base.sight.task == "detect":
        assert base.labels == ("red", "green", "blue")


@pytest.mark.parametrize("name", CONFIGS)
def test_targets_name_so_many_layers(name):
    base = base_of(name)
    layers = {path: base.model.get_submodule(real) for path, real in base.family.layers("model", base.model).items()}
    found = {target: len(base.family.resolve("model", layers, target)) for target in COUNTS[name]}
    assert found == COUNTS[name]


@pytest.mark.parametrize(("name", "target"), CASES)
def test_targets_train_and_come_back(name, target, tmp_path):
    base = base_of(name)
    manager = manage(base)
    with torch.no_grad():
        before = run(base)
    report = manager.add("a", LoraSpec(rank=2, targets=target))
    assert report.modules == {"model": COUNTS[name][target]}
    with torch.no_grad():
        assert torch.equal(run(base), before)
    parameters = manager.trainable("a")["model"]
    generator = torch.manual_seed(2)
    for parameter in parameters:
        parameter.data += torch.randn(parameter.shape, generator=generator)
    after = run(base)
    assert not torch.allclose(after, before, atol=1e-6)
    after.square().sum().backward()
    arrived = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters]
    # the first queries of DETR are zero, and box heads of auxiliary layers act in training only
    assert sum(arrived) >= (0.1 if target == "boxes" else 0.7) * len(arrived)
    value = manager.capture("a")
    manager.remove("a")
    manager.attach("again", value.save(tmp_path / "a.safetensors"))
    with torch.no_grad():
        assert torch.allclose(run(base), after.detach(), rtol=1e-4, atol=1e-4)
    again = manager.capture("again")
    assert again.tensors.keys() == value.tensors.keys()
    assert all(torch.equal(again.tensors[key], value.tensors[key]) for key in value.tensors)


@pytest.mark.parametrize("name", DETECTORS)
def test_parts_of_a_detector_do_not_overlap_and_leave_heads_alone(name):
    base = base_of(name)
    layers = {path: base.model.get_submodule(real) for path, real in base.family.layers("model", base.model).items()}

    def paths(target):
        return set(base.family._named("model", layers, target))

    parts = [paths(part) for part in ("backbone", "encoder", "decoder")]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert paths("transformer") == parts[1] | parts[2]
    for part in ("backbone", "encoder", "decoder"):
        for kind in ("attention", "mlp", "conv", "deformable-attention"):
            assert paths(f"{part}.{kind}") == paths(part) & paths(kind)
    heads = {path for path in layers if any(path.startswith(head) for head in base.sight.heads(base.model))}
    assert not (heads | paths("boxes")) & (set.union(*parts) | paths("all-linear"))


def test_grouped_convolutions_are_in_no_semantic_target():
    base = base_of("convnext")
    layers = {path: base.model.get_submodule(real) for path, real in base.family.layers("model", base.model).items()}
    depthwise = {path for path in layers if path.endswith("dwconv")}
    assert len(depthwise) == 4
    for target in (*base.family.components["model"].semantic, "all-linear"):
        assert not depthwise & set(base.family.resolve("model", layers, target))


def test_layers_that_a_multihead_attention_reads_past_are_refused():
    base = base_of("siglip")
    manager = manage(base)
    with pytest.raises(AdapterError, match=r"inside a torch\.nn\.MultiheadAttention, which reads its weight"):
        manager.add("a", LoraSpec(targets="out_proj"))
    assert manager.add("a", LoraSpec(targets="attention.out")).modules == {"model": 2}


def test_a_target_that_is_not_there_lists_what_is():
    with pytest.raises(TargetError, match=r"'decoder\.atention' matches no layer.*Did you mean 'decoder\.attention'"):
        manage(base_of("detr")).add("a", LoraSpec(targets="decoder.atention"))
    with pytest.raises(TargetError) as error:
        manage(base_of("resnet")).add("a", LoraSpec(targets="attention"))
    assert "there is conv, all-linear" in str(error.value)


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2_registers", "dinov3", "siglip", "clip", "clip_tower"])
def test_token_layers_pass_on_prefix_and_patches(name):
    base = base_of(name)
    rules = base.family.components["model"]
    layers = [path for path, _ in base.model.named_modules() if re.search(rules.token_layers, path)]
    assert len(layers) == 2
    seen = []
    base.model.get_submodule(layers[0]).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    run(base)
    assert seen == [rules.prefix_tokens(base.model) + (32 // 8) ** 2]
