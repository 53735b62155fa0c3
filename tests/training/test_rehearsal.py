"""A step rehearsed without values against the same step on this CPU, whose memory torch's profiler measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.planned import most_memory, real_step, rehearsed
from tests.tiny_speech import speech_settings, write_speech, write_whisper
from tests.vision_place import write_base, write_pictures, write_scenes
from visionpeft.compute.planning.predict import kept_and_passing
from visionpeft.config import RunConfig, config_from
from visionpeft.demo.dreambooth import demo_settings
from visionpeft.training.rehearsal import STATES

SUBJECT = Path(__file__).parents[2] / "visionpeft" / "assets" / "subjects" / "robot"


def classify(folder: Path, **train: object) -> RunConfig:
    table = write_pictures(folder / "pictures", {"red": 8, "green": 8})
    return config_from({
        "task": "classify", "base": "visionpeft/emoji-vit",
        "data": {"source": {"format": "table", "path": str(table)}},
        "adapter": {"method": "lora", "rank": 4, "targets": "attention"},
        "train": {"batch_size": 4, **train}, "output": str(folder / "run"),
    })  # fmt: skip


def dreambooth(folder: Path, **train: object) -> RunConfig:
    settings = demo_settings(SUBJECT, folder / "run", "robot", short=True, prior=False)
    settings["data"]["instance"]["subject_token"] = "rare"
    settings["train"] |= {"learning_rate": 1e-4, "batch_size": 2, **train}
    return config_from({**settings, "preview": None, "score": {"every": 0}})


def transcribe(folder: Path, **train: object) -> RunConfig:
    write_whisper(folder / "base")
    write_speech(folder / "speech")
    settings = json.loads(json.dumps(speech_settings(folder)))
    settings["train"] |= {"batch_size": 8, **train}
    return config_from(settings)


def detect(folder: Path, **train: object) -> RunConfig:
    write_base(folder / "base", "rt_detr")
    write_scenes(folder / "scenes", 12)
    return config_from({
        "task": "detect", "base": str(folder / "base"),
        "data": {"source": {"format": "coco", "folder": str(folder / "scenes"), "annotations": "boxes.json"}},
        "adapter": {"method": "lora", "rank": 2, "targets": "decoder"},
        "train": {"batch_size": 2, **train}, "output": str(folder / "run"),
    })  # fmt: skip


CASES = {
    "classify": (classify, {}),
    "classify, recomputing": (classify, {"gradient_checkpointing": True}),
    "classify, sgd": (classify, {"optimizer": "sgd", "batch_size": 8}),
    "dreambooth": (dreambooth, {}),
    "dreambooth, recomputing": (dreambooth, {"gradient_checkpointing": True}),
    "transcribe": (transcribe, {}),
    "detect": (detect, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_most_memory_of_a_step_is_what_it_takes(name, tmp_path):
    make, train = CASES[name]
    config = make(tmp_path, **train)
    _, kept, passing = kept_and_passing(rehearsed(config).trace.events)
    step, _ = real_step(config, tmp_path)
    assert kept + passing == pytest.approx(most_memory(step), rel=0.08)


def test_weights_and_what_trains_are_counted_to_the_byte(tmp_path):
    config = classify(tmp_path)
    found = rehearsed(config)
    _, trainer = real_step(config, tmp_path)
    trained = sum(parameter.numel() for parameter in trainer.parameters.values())
    assert found.parameters == trained
    base = model_of(config)
    frozen = sum(p.nbytes for p in base.parameters() if not p.requires_grad)
    buffers = sum(b.nbytes for b in base.buffers())
    assert sum(found.weights.values()) == frozen + buffers
    # master, gradient and two moments of float32, with some numbers of the optimizer's own
    before, _, _ = kept_and_passing(found.trace.events)
    assert before - frozen - buffers - found.inputs == pytest.approx(16 * trained, rel=0.01)


def model_of(config: RunConfig) -> torch.nn.Module:
    from visionpeft.progress import SILENT
    from visionpeft.run import JOBS

    return JOBS[config.task].build(config, SILENT).components["model"]


def test_recomputing_keeps_less_and_computes_more(tmp_path):
    plain, again = (rehearsed(classify(tmp_path / str(on), gradient_checkpointing=on)) for on in (False, True))
    kept = [kept_and_passing(found.trace.events)[1] for found in (plain, again)]
    flops = [sum(kernel.flops for kernel in found.trace.at("backward")) for found in (plain, again)]
    forward = sum(kernel.flops for kernel in plain.trace.at("forward"))
    assert kept[1] < kept[0] / 3
    assert 0.6 < (flops[1] - flops[0]) / forward <= 1  # the first and last layers are in no block


def test_a_base_in_fewer_bits_is_smaller_and_made_whole_on_the_way(tmp_path):
    plain, packed = (rehearsed(classify(tmp_path / base, memory={"base": base})) for base in ("auto", "int8"))
    assert 0.25 < sum(packed.weights.values()) / sum(plain.weights.values()) < 0.3
    first = max(size for size in plain.weights.values())  # of the layers: made whole, in float32, in each pass
    counts = [
        sum(event.size == first for event in found.trace.events if event.stage in ("forward", "backward"))
        for found in (plain, packed)
    ]
    assert counts[1] > counts[0]


def test_states_of_optimizers_that_look_at_values():
    matrix = torch.empty(64, 32, device="meta")
    assert sum(STATES["adamw8bit"](matrix)) == 2 * 64 * 32 + 2 * 4 * 8
    assert sum(STATES["adafactor"](matrix)) == 4 * (64 + 32)
