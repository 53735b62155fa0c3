"""Fresh heads, the loss and outputs of detectors, depths, and batch norms that never move."""

import math

import pytest
import torch
from torch import nn

from tests.models.test_vision_families import base_of, run
from tests.tiny_vision import CLASSIFIERS, CONFIGS, DETECTORS, tiny_vision
from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import BaseModelError, DataError, TargetError
from visionpeft.models.depth import depth_of, depths
from visionpeft.models.detection import detection_loss, detector_output, detector_scores
from visionpeft.models.heads import new_heads
from visionpeft.models.manage import manage
from visionpeft.models.norms import FrozenBatchNorm, freeze_batch_norms, live_batch_norms

FIVE = ("a", "b", "c", "d", "e")
ONE_HEAD = {"resnet": ["model.classifier.1"]}
RT_HEADS = (
    "model.decoder.class_embed.0", "model.decoder.class_embed.1", "model.denoising_class_embed", "model.enc_score_head",
)  # fmt: skip
HEADS = {
    "detr": ["class_labels_classifier"],
    "conditional_detr": ["class_labels_classifier"],
    "deformable_detr": ["class_embed.0", "class_embed.1"],
    "deformable_detr_two_stage": ["class_embed.0", "class_embed.1", "model.decoder.class_embed.2"],
    "yolos": ["class_labels_classifier.layers.2"],
    "rf_detr": ["class_embed", "model.enc_out_class_embed.0", "model.enc_out_class_embed.1"],
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine"), RT_HEADS),
}
BOXES = torch.tensor([[0.4, 0.4, 0.2, 0.2], [0.6, 0.5, 0.2, 0.4], [0.3, 0.7, 0.1, 0.1]])
TARGETS = [
    {"class_labels": torch.tensor([4, 1, 4]), "boxes": BOXES},
    {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
]


def mounted(base, heads):
    for place, head in heads.items():
        parent, _, name = place.removeprefix("model.").rpartition(".")
        setattr(base.model.get_submodule(parent), name, head)
    return base


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_s_head(name):
    base = base_of(name)
    heads = new_heads(base, FIVE, seed=1)
    assert list(heads) == ONE_HEAD.get(name, ["model.classifier"])
    again = new_heads(base, FIVE, seed=1)
    (head,), (same,) = heads.values(), again.values()
    assert torch.equal(head.weight, same.weight)
    assert 0.01 < float(head.weight.std()) < 0.03
    assert not head.bias.any()
    mounted(base, heads)
    assert run(base).shape == (10,)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_trains_with_a_head_for_other_labels(name):
    base = base_of(name)
    heads = new_heads(base, FIVE)
    assert sorted(heads) == sorted(f"model.{path}" for path in HEADS[name])
    mounted(base, heads)
    config = base.model.config
    base.model.train()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))
    loss = detection_loss(base, pixels, torch.ones(2, 64, 64, dtype=torch.int64), TARGETS)
    assert loss.count == 3
    assert base.labels == ("red", "green", "blue")
    assert config.num_labels == 3
    loss.loss_sum.backward()
    assert any(bool(p.grad is not None and p.grad.any()) for head in heads.values() for p in head.parameters())
    base.model.eval()
    with torch.no_grad():
        out = detector_output(base, pixels)
    scores = detector_scores(base, out.logits)
    assert scores.shape == (2, 6, 5)
    assert out.logits.shape[-1] == 5 + base.sight.background
    assert out.boxes.shape == (2, 6, 4)
    assert out.boxes.min() >= 0
    assert out.boxes.max() <= 1
    if not base.sight.background:
        last = list(heads.values())[-1]
        assert torch.allclose(last.bias, torch.tensor(math.log(0.01 / 0.99)).expand(5))


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "yolos"])
def test_the_loss_is_transformers_own(name):
    base = base_of(name)
    targets = [{"class_labels": one["class_labels"] % 3, "boxes": one["boxes"]} for one in TARGETS]
    pixels = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))
    with torch.no_grad():
        mine = detection_loss(base, pixels, None, targets)
        theirs = base.model(pixel_values=pixels, labels=targets)
    assert torch.allclose(mine.loss_sum / mine.count, theirs.loss)
    assert mine.parts.keys() == theirs.loss_dict.keys()


def test_a_loss_of_independent_classes_adds_up_over_micro_batches():
    base = base_of("deformable_detr")
    pixels = torch.randn(2, 3, 128, 128, generator=torch.manual_seed(0))
    targets = [
        {"class_labels": torch.tensor([0, 2]), "boxes": BOXES[:2]},
        {"class_labels": torch.tensor([1]), "boxes": BOXES[2:]},
    ]
    with torch.no_grad():
        whole = detection_loss(base, pixels, None, targets)
        parts = [detection_loss(base, pixels[i : i + 1], None, targets[i : i + 1]) for i in (0, 1)]
    assert whole.count == sum(part.count for part in parts)
    assert torch.allclose(whole.loss_sum, sum(part.loss_sum for part in parts), rtol=1e-4)


def test_box_heads_go_on_from_the_base():
    for name, places in (("detr", ["model.bbox_predictor"]), ("rt_detr", ["model.model.decoder.bbox_embed.0"])):
        base = base_of(name)
        heads = new_heads(base, FIVE, boxes=True)
        for place in places:
            mine, old = heads[place], base.model.get_submodule(place.removeprefix("model."))
            assert mine is not old
            assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), old.parameters(), strict=True))
            assert all(parameter.requires_grad for parameter in mine.parameters())


def test_heads_that_cannot_be_are_refused():
    base = base_of("vit")
    for labels in ((), ("a", "a")):
        with pytest.raises(DataError, match="each once"):
            new_heads(base, labels)
    base.model.classifier = nn.Sequential(base.model.classifier)
    with pytest.raises(BaseModelError, match="make heads before adapters"):
        new_heads(base, FIVE)


@pytest.mark.parametrize("name", CONFIGS)
def test_depths_rise_from_pixels_to_heads(name):
    base = base_of(name)
    table = depths(base)
    last = max(table.values())
    assert set(table.values()) == set(range(last + 1))
    for path in base.sight.heads(base.model):
        assert depth_of(base, path) == last
    assert depth_of(base, next(iter(table))) == 0
    manage(base).add("a", LoraSpec(rank=1, targets="all-linear" if name != "resnet" else "conv"))
    now = depths(base)
    assert all(now[name.replace(".base.", ".")] == depth for name, depth in now.items() if name in table)


def test_depths_of_a_vision_transformer():
    base = base_of("vit")
    for path, depth in {
        "vit.embeddings": 0, "vit.layers.0": 1, "vit.layers.1.mlp.fc1.weight": 2, "model.vit.layers.0.attention": 1,
        "vit.layernorm": 3, "classifier": 3,
    }.items():  # fmt: skip
        assert depth_of(base, path) == depth
    with pytest.raises(TargetError, match=r"has nothing at 'vit\.layer\.0'"):
        depth_of(base, "vit.layer.0")


@pytest.mark.parametrize("name", ["resnet", "rt_detr", "detr"])
def test_batch_norms_do_not_move_in_training(name):
    live = tiny_vision(name)
    assert (live_batch_norms(live) == []) == (name == "detr")
    with torch.no_grad():
        before = live(torch.randn(2, 3, 64, 64, generator=torch.manual_seed(1))).logits
    names = list(live.state_dict())
    base = base_of(name)
    assert live_batch_norms(base.model) == []
    assert list(base.model.state_dict()) == names
    with torch.no_grad():
        assert torch.equal(base.model(torch.randn(2, 3, 64, 64, generator=torch.manual_seed(1))).logits, before)
    norms = [one for one in base.model.modules() if "BatchNorm" in type(one).__name__]
    kept = [{key: value.clone() for key, value in norm.state_dict().items()} for norm in norms]
    manager = manage(base)
    manager.add("a", LoraSpec(rank=2, targets="conv"))
    base.model.train()
    optimizer = torch.optim.SGD([p for p in base.model.parameters() if p.requires_grad], lr=0.1)
    base.model(torch.randn(2, 3, 64, 64)).logits.square().sum().backward()
    optimizer.step()
    assert not any(True for norm in norms for _ in norm.parameters())
    for norm, values in zip(norms, kept, strict=True):
        assert all(torch.equal(value, values[key]) for key, value in norm.state_dict().items())


def test_a_frozen_batch_norm_is_a_batch_norm_in_evaluation():
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 4, 5, 5)
    frozen = FrozenBatchNorm(norm).train()
    assert torch.equal(frozen(x), norm.eval()(x))
    strange = nn.Sequential(nn.BatchNorm2d(4, affine=False))
    with pytest.raises(BaseModelError, match="cannot be frozen here"):
        freeze_batch_norms(strange)
