"""The detection task: its batches, its parts, that it learns, and that it goes on bit-equal."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tests.tiny_vision import DETECTORS, available
from tests.vision_place import detect_settings, everything, write_base, write_scenes
from visionpeft.compute.blocks import blocks_of
from visionpeft.compute.thrift import Thrift
from visionpeft.config import DetectRun, config_from
from visionpeft.data.detection.augment import size_for
from visionpeft.data.order import Position
from visionpeft.delivery.detection import build
from visionpeft.errors import ConfigError
from visionpeft.inference.detector import Detector
from visionpeft.inference.predict import open_model
from visionpeft.models.detection import detection_loss, detector_output, train_all_layers
from visionpeft.models.preprocess import Preprocessing
from visionpeft.models.vision import load_vision
from visionpeft.progress import SILENT, RecordingProgress
from visionpeft.tasks.detection import Detection, scene_size
from visionpeft.training.engine import fit
from visionpeft.training.interrupt import TrainingInterruptedError
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Context


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    write_base(folder / "base", "detr")
    write_scenes(folder / "pictures", 16)
    return folder


def configured(place: Path, **changes: Any) -> DetectRun:
    config = config_from(detect_settings(place, **changes))
    assert isinstance(config, DetectRun)
    return config


def rng(count: int) -> StepRng:
    return StepRng(0, 0, torch.arange(count), count, torch.device("cpu"))


class Stopping(Detection):
    """Asks for a stop in the second step."""

    asked = False

    def loss(self, batch, rng):
        if rng.step == 1 and not self.asked:
            self.asked = True
            signal.raise_signal(signal.SIGTERM)
        return super().loss(batch, rng)


def test_it_goes_on_bit_equal_and_threads_make_no_difference(place: Path, tmp_path: Path):
    adapter = {"method": "lora", "rank": 2, "targets": ["backbone", "encoder", "decoder"], "dropout": 0.1}
    data = detect_settings(place)["data"] | {"augment": {"crop": 0.5, "mosaic": 0.5}, "sides": [48, 64]}
    config = configured(place, adapter=adapter, data=data)
    threaded = configured(place, adapter=adapter, data=data | {"workers": 2})
    fit(build(config), config.train, tmp_path / "straight")
    stopping = build(threaded)
    stopping.__class__ = Stopping
    with pytest.raises(TrainingInterruptedError, match="after step 2"):
        fit(stopping, config.train, tmp_path / "stopped")
    fit(build(threaded), config.train, tmp_path / "stopped", resume="auto")
    assert everything(tmp_path / "stopped", 4) == everything(tmp_path / "straight", 4)


def test_parts_have_rates_of_their_own_and_batch_norms_stay(place: Path, tmp_path: Path):
    rates = {"backbone": 1e-4, "encoder": 1e-3, "decoder": 2e-3, "boxes": 5e-3, "heads": 1e-2}
    adapter = {"method": "lora", "rank": 2, "targets": ["backbone", "encoder", "decoder"]}
    config = configured(place, adapter=adapter)
    task = build(config)
    assert list(task.trainable()) == ["backbone", "boxes", "decoder", "encoder", "heads"]
    before = {name: value.clone() for name, value in task.base.model.named_buffers() if "running" in name}
    assert before
    fit(task, config.train.model_copy(update={"learning_rate": rates, "steps": 2, "evaluate_every": 0}), tmp_path)
    after = dict(task.base.model.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert '"backbone": 0.0001' in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("targets", "groups"),
    [
        ("backbone", ["backbone", "boxes", "heads"]),
        ("decoder.attention", ["boxes", "decoder", "heads"]),
        ("encoder", ["boxes", "encoder", "heads"]),
    ],
)
def test_targets_choose_the_part(place: Path, targets: str, groups: list[str]):
    task = build(configured(place, adapter={"method": "lora", "rank": 2, "targets": targets}))
    assert list(task.trainable()) == groups


def test_only_class_heads_without_boxes(place: Path):
    with_boxes = build(configured(place, adapter={"method": "probe"}))
    without = build(configured(place, adapter={"method": "probe"}, train_boxes=False))
    assert set(without.manager.parameters("detector")) < set(with_boxes.manager.parameters("detector"))
    assert all("class" in name for name in without.manager.parameters("detector"))


def test_the_loss_is_the_detectors_own(place: Path, tmp_path: Path):
    config = configured(place)
    task = build(config)
    fit(task, config.train.model_copy(update={"steps": 1, "evaluate_every": 0}), tmp_path)
    task.base.model.eval()
    batch = task.batch([Position(0, index, index) for index in range(4)])
    out = task.loss(batch, rng(4))
    found = detection_loss(task.base, batch.pixels, batch.mask, batch.targets.lists())
    torch.testing.assert_close(out.loss_sum, found.loss_sum)
    assert float(out.count) == sum(len(target["boxes"]) for target in batch.targets.lists())
    assert {"loss_ce", "loss_bbox", "loss_giou"} <= set(out.logs)
    assert not any(name[-1].isdigit() for name in out.logs)


ANSWERING = {"detr": 0, "conditional_detr": 0, "deformable_detr": 1, "rt_detr": 2, "yolos": 0}


@pytest.mark.parametrize(("name", "layers"), ANSWERING.items())
def test_every_decoder_layer_answers_unless_it_is_turned_off(tmp_path: Path, name: str, layers: int):
    write_base(tmp_path / "base", name)
    write_scenes(tmp_path / "pictures", 6)
    for auxiliary, expected in ((True, layers), (False, 0)):
        data = detect_settings(tmp_path)["data"] | {"image_size": 128}
        config = configured(tmp_path, data=data, adapter={"method": "probe"}, auxiliary_loss=auxiliary)
        task, progress = build(config), RecordingProgress(SILENT)
        task.prepare(Context(Accelerator(cpu=True), torch.device("cpu"), None, 0, 1, 0, tmp_path, progress))
        told = any("alone learns to answer" in line for line in progress.lines)
        assert told == (auxiliary and name in ("detr", "conditional_detr"))
        batch = task.batch([Position(0, 0, 0)])
        task.base.model.train()
        parts = detection_loss(task.base, batch.pixels, batch.mask, batch.targets.lists()).parts
        places = {part.rpartition("_")[2] for part in parts if part.startswith("loss_bbox_") and "dn" not in part}
        assert len(places) == expected


@pytest.mark.parametrize("name", [name for name in DETECTORS if available(name)])
def test_a_detector_in_training_is_the_one_in_use(tmp_path: Path, name: str):
    """Auxiliary losses must not change what the network computes, as they do in some of transformers."""
    base = load_vision(write_base(tmp_path, name), task="detect", image_size=128)
    pixels = torch.randn(2, 3, 128, 128, generator=torch.manual_seed(0))
    with torch.no_grad():
        before = detector_output(base, pixels).boxes
        train_all_layers(base, wanted=True)
        torch.testing.assert_close(detector_output(base, pixels).boxes, before)


SHAPES = {
    "pad": {"fit": "pad", "image_size": 96},
    "wide": {"fit": "pad", "image_size": [64, 128]},
    "tall": {"fit": "stretch", "image_size": [128, 64]},
    "shortest": {"fit": "pad", "image_size": 128, "shortest": 64},
}
RATIOS = {"portrait": (48, 64), "landscape": (90, 48)}


@pytest.mark.parametrize("picture", RATIOS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr", "yolos"])
def test_training_pictures_come_as_those_in_use(tmp_path: Path, name: str, shape: str, picture: str):
    """Without chance a training picture is what the detector in use sees, and its boxes come back as they were."""
    write_base(tmp_path / "base", name)
    write_scenes(tmp_path / "pictures", 4, size=RATIOS[picture])
    data = detect_settings(tmp_path)["data"] | {"augment": {"flip_horizontal": 0.0}, **SHAPES[shape]}
    task = build(configured(tmp_path, data=data, adapter={"method": "probe"}))
    task.prepare(Context(Accelerator(cpu=True), torch.device("cpu"), None, 0, 1, 0, tmp_path, SILENT))
    batch = task.batch([Position(0, 1, 0)])
    preprocessing, scene, image = task.base.preprocessing, task.splits.train.scenes[1], task.splits.train.image(1)
    torch.testing.assert_close(batch.pixels, preprocessing.pixels([image]), atol=0.02, rtol=0)
    assert torch.equal(batch.mask, preprocessing.masks([image]))
    boxes = batch.targets.lists()[0]["boxes"]
    scores = torch.zeros(len(boxes), 3)
    scores[range(len(boxes)), batch.targets.lists()[0]["class_labels"]] = 1 - torch.arange(len(boxes)) / 10
    found = task.detector._of_one("a", image, scores, boxes.double().numpy())
    np.testing.assert_allclose(found.boxes[: len(boxes)], scene.boxes, atol=0.01)


def test_it_learns_and_the_file_says_the_same(place: Path, tmp_path: Path):
    train = {"steps": 40, "batch_size": 8, "learning_rate": 5e-3, "evaluate_every": 0}
    config = configured(place, adapter={"method": "full"}, train=train)
    task = build(config)
    result = fit(task, config.train, tmp_path)
    log = [line for line in (tmp_path / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in log]
    assert losses[-1] < 0.9 * losses[0]
    model = open_model(result.adapter.save(tmp_path / "a.safetensors"))
    assert isinstance(model, Detector)
    task.base.model.eval()
    images = [task.splits.test.image(0)]
    one, other = model.detect(images)[0], task.detector.detect(images)[0]
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)


def test_sizes_that_do_not_fit_are_refused(place: Path):
    preprocessing = build(configured(place)).base.preprocessing
    with pytest.raises(ConfigError, match=r"whole pictures, not their middle: set data\.fit to stretch or pad"):
        scene_size(preprocessing.model_copy(update={"fit": "crop"}), ())
    with pytest.raises(ConfigError, match=r"data\.sides: 128 is larger than the 64 pixels"):
        scene_size(preprocessing, (128,))
    with pytest.raises(ConfigError, match=r"data\.shortest keeps the shape of pictures, and data\.fit is stretch"):
        scene_size(preprocessing.model_copy(update={"shortest": 32}), ())


def test_sizes_are_drawn_in_the_shape_of_the_pixels():
    wide = Preprocessing(size=(64, 128), fit="stretch")
    assert [size_for(50, 90, scene_size(wide, (32, 64)), side) for side in (32, 64)] == [(64, 32), (128, 64)]
    padded = scene_size(Preprocessing(size=(64, 128), fit="pad"), (32, 48))
    assert size_for(100, 50, padded, 32) == (64, 32)
    assert size_for(50, 100, padded, 48) == (32, 64)


def test_without_validation_pictures_nothing_chooses_and_it_is_said(place: Path):
    data = detect_settings(place)["data"] | {"split": {"validation": 0, "test": 0.2}}
    task, progress = build(configured(place, data=data)), RecordingProgress(SILENT)
    task.prepare(Context(Accelerator(cpu=True), torch.device("cpu"), None, 0, 1, 0, place, progress))
    assert (task.metric, task.evaluate(1)) == (None, {})
    assert "There are no validation pictures: the last step is kept, and no threshold is chosen." in progress.lines


def test_the_first_values_are_the_seeds_and_scratch_is_noted(place: Path):
    one, same, other = (build(configured(place, train={"steps": 1, "seed": seed})).capture() for seed in (0, 0, 1))
    key = next(key for key in one.tensors if "lora_A" in key)
    head = next(key for key in one.heads if "class" in key and "weight" in key)
    assert torch.equal(one.tensors[key], same.tensors[key])
    assert not torch.equal(one.tensors[key], other.tensors[key])
    assert not torch.equal(one.heads[head], other.heads[head])
    assert one.metadata.heads["scratch"] is None
    scratch = build(configured(place, scratch=True, train={"steps": 1, "seed": 3})).capture()
    assert scratch.metadata.heads["scratch"] == 3


def test_recomputing_and_varying_are_done_where_asked(place: Path):
    augment = {"flip_horizontal": 0.0, "brightness": 0.5}
    task = build(configured(place, data=detect_settings(place)["data"] | {"augment": augment}))
    task.prepare(
        Context(Accelerator(cpu=True), torch.device("cpu"), None, 0, 1, 0, place, SILENT, Thrift(recompute=1.0))
    )
    again = [path for path, block in blocks_of(task.base.model).items() if "forward" in vars(block)]
    assert any(".decoder." in path for path in again)
    first, second = (task.batch([Position(epoch, 0, 0)]).pixels for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert task.files([Position(0, 2, 0)]) == [task.splits.train.scenes[2].name]


def test_a_decoder_in_float32_stays_so_with_adapters_in_half_precision(tmp_path: Path):
    write_base(tmp_path / "base", "rt_detr")
    write_scenes(tmp_path / "pictures", 4)
    adapter = {"method": "lora", "rank": 2, "targets": ["backbone", "encoder", "decoder"]}
    config = configured(tmp_path, adapter=adapter)
    task, kinds = build(config), dict[str, torch.dtype]()
    model: Any = task.base.model.model
    parts = {"backbone": model.encoder_input_proj[0][0], "decoder": model.decoder.layers[0].encoder_attn.value_proj}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, __, out, name=name: kinds.update({name: out.dtype}))
    changes = {"precision": "bf16", "steps": 2, "batch_size": 2, "evaluate_every": 0}
    result = fit(task, config.train.model_copy(update=changes), tmp_path / "run")
    assert kinds == {"backbone": torch.bfloat16, "decoder": torch.float32}
    assert all(value.abs().max() > 0 for name, value in result.last.tensors.items() if "decoder" in name)
