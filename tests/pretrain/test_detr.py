"""The detector's scenes, losses and training step, each against something that knows better; and the asset itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors import safe_open
from torch.profiler import profile
from transformers import AutoModelForObjectDetection, RTDetrV2ForObjectDetection

from scripts.pretrain.artwork import SPRITE, Sprites
from scripts.pretrain.concepts import STYLES, TRAINED
from scripts.pretrain.detr import LIMIT, Detecting, disturbed, pack
from scripts.pretrain.detr_measure import average_precision, figures
from scripts.pretrain.detr_model import make_detector
from scripts.pretrain.detr_scenes import (
    LEAST_SIDE,
    SIDE,
    THINGS,
    CrowdComposer,
    Crowds,
    Scenes,
    crowd_scenes,
    draw_crowds,
    extent,
)
from tests.models.things import random_things
from visionpeft.models.matching import to_corners
from visionpeft.models.rt_detr import feature_maps

ASSET = Path(__file__).parents[2] / "visionpeft" / "assets" / "emoji-detr"
CPU = torch.device("cpu")
CLASSES = ["ball", "fruit", "toy"]


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    """A red disc, a green bar and a blue diamond instead of artwork."""
    y, x = np.mgrid[:SPRITE, :SPRITE] / SPRITE - 0.5
    shapes = [np.hypot(x, y) < 0.5, abs(y) < 0.2, abs(x) + abs(y) < 0.5]
    rgba = np.zeros((3, len(STYLES), SPRITE, SPRITE, 4), np.uint8)
    for index, shape in enumerate(shapes):
        rgba[index, ..., index], rgba[index, ..., 3] = 255, 255 * shape
    return Sprites(["apple", "banana", "kite"], ["fruit", "ball", "toy"], 3, rgba)


@pytest.fixture(scope="module")
def detector() -> RTDetrV2ForObjectDetection:
    torch.manual_seed(0)
    return make_detector(CLASSES)


def plain(crowds: Crowds) -> Crowds:
    """One of each thing at most, opaque, in its own colour, on black."""
    for name in ("tint", "colour", "relief", "light", "texture"):
        getattr(crowds, name).zero_()
    crowds.opacity.fill_(1)
    crowds.sprite[:, :3] = torch.tensor([0, 3, 6])
    crowds.sprite[:, 3:] = -1
    return crowds


def test_boxes_are_tight_around_what_is_seen_where_things_overlap_and_stick_out(sprites: Sprites) -> None:
    crowds = plain(draw_crowds(sprites, np.arange(3), 40, np.random.default_rng(0)))
    pictures, boxes, painted = CrowdComposer(sprites, CPU)(crowds, torch.Generator())
    assert painted[:, :3].float().mean() > 0.6
    assert not painted[:, 3:].any()
    for thing in range(3):  # its colour is a channel of its own, so that its alpha can be read from the picture
        seen = extent(pictures[:, thing] > 0.3)
        assert torch.equal(boxes[:, thing][painted[:, thing]], seen[painted[:, thing]])
        assert not pictures[:, thing][~painted[:, thing]].any()
    shown = boxes[painted]
    assert (shown[:, 2:] - shown[:, :2]).min() >= LEAST_SIDE
    assert (shown[:, 0] == 0).any()
    assert (shown[:, 2] == SIDE).any()
    crowds.sprite[:, :2] = -1
    whole = CrowdComposer(sprites, CPU)(crowds, torch.Generator())[1]
    assert (boxes[:, 2] != whole[:, 2]).any()  # what lies in front cuts a box


def test_scenes_are_a_function_of_the_seed(sprites: Sprites) -> None:
    one, again, other = (crowd_scenes(sprites, np.arange(3), CLASSES, 4, seed, CPU) for seed in (5, 5, 6))
    for name in ("pictures", "boxes", "labels"):
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert not torch.equal(one.pictures, other.pictures)


def test_scenes_hold_their_classes_first_and_boxes_within_the_picture(sprites: Sprites) -> None:
    scenes = crowd_scenes(sprites, np.array([0, 2]), CLASSES, 12, 1, CPU)
    there = scenes.labels >= 0
    assert set(scenes.labels[there].tolist()) == {CLASSES.index("fruit"), CLASSES.index("toy")}
    assert torch.equal(there, torch.arange(THINGS) < there.sum(1, keepdim=True))
    assert not scenes.boxes[~there].any()
    corners = to_corners(scenes.boxes[there])
    assert corners.min() > -1e-6
    assert corners.max() < 1 + 1e-6
    assert there.sum(1).max() >= 10


def test_disturbing_moves_boxes_with_their_pixels() -> None:
    pictures, boxes = torch.zeros(32, 3, SIDE, SIDE, dtype=torch.uint8), torch.zeros(32, THINGS, 4)
    pictures[:, :, 40:60, 200:290] = 255
    boxes[:, 0] = torch.tensor([245, 50, 90, 20]) / SIDE
    moved, where = disturbed(Scenes(pictures, boxes, torch.zeros(32, THINGS, dtype=torch.long)))
    bright = moved.mean(1)
    bright = bright > (bright.amax((1, 2), keepdim=True) + bright.amin((1, 2), keepdim=True)) / 2
    assert torch.allclose(extent(bright), to_corners(where[:, 0]) * SIDE, atol=1.01)
    assert len(torch.unique(where[:, 0].round(decimals=3), dim=0)) == 8


def test_a_step_reaches_every_weight_and_asks_the_host_nothing(detector: RTDetrV2ForObjectDetection) -> None:
    detector.train()
    rng = torch.Generator().manual_seed(0)
    targets = random_things(2, 3, seed=0)
    boxes, labels = torch.zeros(2, THINGS, 4), torch.full((2, THINGS), -1)
    boxes[:, :12], labels[:, :12] = targets.boxes, targets.labels
    pictures = torch.randint(256, (2, 3, 96, 96), generator=rng, dtype=torch.uint8)
    loss = Detecting(detector, Scenes(pictures, boxes, labels), 2)
    loss().backward()
    with profile() as trace:
        loss().backward()
    asked = {event.key: event.count for event in trace.key_averages()}
    # Deformable attention compares two shapes, which lie on the host, once a layer.
    assert asked.get("aten::_local_scalar_dense", 0) <= detector.config.decoder_layers
    assert not any(name in asked for name in ("aten::nonzero", "aten::masked_select", "aten::_unique2"))
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    detector.zero_grad()


def test_average_precision_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    pictures, found, boxes, labels = 12, [], [], []
    for _ in range(pictures):
        number = rng.integers(0, 9)
        low = rng.uniform(0, 250, (number, 2))
        boxes.append(torch.from_numpy(np.hstack([low, low + rng.uniform(40, 90, (number, 2))])))
        labels.append(torch.from_numpy(rng.integers(0, 3, number)))
        guesses = torch.cat([boxes[-1] + torch.from_numpy(rng.normal(0, 5, (number, 4))) for _ in range(2)])
        guesses = torch.cat([guesses, torch.tensor([[5.0, 5, 40, 40]]).expand(20 - len(guesses), 4)])
        classes = torch.cat([labels[-1], labels[-1], torch.from_numpy(rng.integers(0, 3, 20 - 2 * number))])
        found.append((torch.from_numpy(np.sort(rng.random(20))[::-1].copy()), classes, guesses))
    mine = average_precision(tuple(torch.stack(column) for column in zip(*found, strict=True)), boxes, labels)
    assert mine["mAP"] == pytest.approx(coco(found, boxes, labels)[0], abs=1e-9)
    assert mine["mAP50"] == pytest.approx(coco(found, boxes, labels)[1], abs=1e-9)


def coco(found: list[tuple[torch.Tensor, ...]], boxes: list[torch.Tensor], labels: list[torch.Tensor]) -> np.ndarray:
    """The figures of pycocotools."""

    def rows(corners: torch.Tensor, classes: torch.Tensor, picture: int) -> list[dict[str, object]]:
        sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
        return [
            {"image_id": picture, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for b, c in zip(sides, classes.tolist(), strict=True)
        ]

    truth = [row for i, (b, k) in enumerate(zip(boxes, labels, strict=True)) for row in rows(b, k, i)]
    dataset, results = COCO(), COCO()
    dataset.dataset = {
        "images": [{"id": i} for i in range(len(boxes))],
        "categories": [{"id": c} for c in range(3)],
        "annotations": [row | {"id": i} for i, row in enumerate(truth, 1)],
    }
    dataset.createIndex()
    guesses = [
        row | {"score": s}
        for i, (scores, classes, corners) in enumerate(found)
        for row, s in zip(rows(corners, classes, i), scores.tolist(), strict=True)
    ]
    results = dataset.loadRes(guesses)
    evaluation = COCOeval(dataset, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def test_the_packed_folder_is_the_model_in_half_precision(detector: RTDetrV2ForObjectDetection, tmp_path: Path) -> None:
    pack(detector.state_dict(), CLASSES, tmp_path)
    loaded, report = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    assert not any("norm" in name for name, _ in loaded.model.backbone.named_parameters())  # frozen
    weights = detector.state_dict()
    assert all(torch.equal(value, weights[name].half().to(value.dtype)) for name, value in loaded.state_dict().items())
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (feature_maps(model.eval(), pixels) for model in (detector, loaded))
    for one, other in zip(before, after, strict=True):
        assert (one - other).norm() < 0.01 * one.norm()


def test_the_shipped_detector_is_small_and_finds_balls() -> None:
    weights = ASSET / "model.safetensors"
    assert weights.stat().st_size <= LIMIT
    with safe_open(weights, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
    model = AutoModelForObjectDetection.from_pretrained(ASSET).eval()
    assert [model.config.id2label[i] for i in range(model.config.num_labels)] == sorted(TRAINED)
    preprocessing = json.loads((ASSET / "preprocessor.json").read_text())
    assert preprocessing["size"] == [SIDE, SIDE]
    pictures, boxes = torch.full((1, 3, SIDE, SIDE), 200, dtype=torch.uint8), torch.zeros(1, THINGS, 4)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    for index, (left, top) in enumerate([(90, 80), (220, 100), (150, 230)]):
        pictures[0, :, torch.hypot(x - left, y - top) < 30] = torch.tensor([[220], [110], [30]], dtype=torch.uint8)
        boxes[0, index] = torch.tensor([left, top, 60, 60]) / SIDE
    labels = torch.full((1, THINGS), -1)
    labels[0, :3] = 0
    assert figures(model, Scenes(pictures, boxes, labels))["mAP50_boxes"] > 0.6
