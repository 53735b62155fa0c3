"""A base that two processes share is trained as one process trains it whole: every kind of task, to its end."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed.tensor import DTensor
from transformers import ViTForImageClassification

from tests.processes import run_together
from tests.tiny import tiny_sdxl, tiny_vit
from tests.tiny_speech import new_whisper, speech_settings, write_speech, write_whisper
from tests.vision_place import classify_settings, detect_settings, write_base, write_pictures, write_scenes
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.spec import AdapterSpec, DoraSpec, FullSpec, LoraSpec
from visionpeft.compute.sharding import Sharding, Shared
from visionpeft.config import config_from
from visionpeft.errors import AdapterError, ConfigError, TrainingError, VisionPeftError
from visionpeft.files.bases import weights_of
from visionpeft.models.manage import manage
from visionpeft.progress import SILENT, Progress, SilentProgress
from visionpeft.run import JOBS, train
from visionpeft.training.engine import fit

pytestmark = pytest.mark.slow
LORA = {"method": "lora", "rank": 2, "targets": "all-linear"}
TRAIN = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "ema": 0.9, "checkpoint_every": 2, "evaluate_every": 2,
         "log_every": 1}  # fmt: skip
WORK = "import sys; from tests.compute.test_sharding import shared_out; shared_out(sys.argv[1])"


def settings(place: Path) -> dict[str, dict[str, Any]]:
    """Settings of a run by name."""
    recomputing = TRAIN | {"gradient_checkpointing": True}
    vit = classify_settings(place, base=str(place / "vit"), train=TRAIN, adapter=LORA)
    whisper = speech_settings(place, base=str(place / "whisper"), train=TRAIN)
    sdxl = {
        "task": "dreambooth", "base": str(place / "sdxl"), "train": TRAIN,
        "data": {"instance": {"images": str(place / "photos"), "prompt": "a photo of sks robot"},
                 "prior": {"prompt": "a photo of a robot", "count": 3, "steps": 2}},
        "adapter": {"method": "lora", "rank": 2, "targets": {"unet": "attention", "text_encoder_2": "attention"}},
        "preview": {"every": 2, "prompts": ["a photo of sks robot"], "seeds": [0], "steps": 2},
        "score": {"every": 2, "seeds": [0], "steps": 2, "prompts": ["a photo of {subject}"],
                  "unrelated_prompts": ["a red dog"]},
    }  # fmt: skip
    return {
        "vit": vit,
        "vit-recomputing": vit | {"train": recomputing},
        "vit-dora": vit | {"adapter": LORA | {"method": "dora"}},
        "whisper": whisper,
        "whisper-recomputing": whisper | {"train": recomputing},
        "sdxl": sdxl,
        "sdxl-recomputing": sdxl | {"train": recomputing},
    }


class Lines(SilentProgress):
    """Adds what is said to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)

    def say(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(line + "\n")


def detectors(place: Path) -> dict[str, dict[str, Any]]:
    """Settings of a run of each kind of detector."""
    train = TRAIN | {"batch_size": 2, "learning_rate": 1e-3, "steps": 2}
    return {
        name: detect_settings(place, base=str(place / name), train=train, adapter=LORA)
        | {"data": detect_settings(place / "scenes")["data"]}
        for name in ("detr", "deformable_detr", "rt_detr")
    }


def shared_out(folder: str) -> None:
    """Make every run on a shared base, the first of each model in two parts; in each of two processes."""
    place, rank = Path(folder), os.environ["RANK"]
    for name, given in settings(place).items():
        for steps in (4,) if "-" in name else (2, 4):
            changed = given["train"] | {"batch_size": 2, "steps": steps, "shard": "on"}
            said = Lines(place / "said" / f"{name}-{rank}")
            learn(given | {"train": changed, "output": str(place / "two" / name), "resume": "auto"}, said)
    for name, given in detectors(place).items():
        for shard in ("on", "off"):
            learn(given | {"train": given["train"] | {"shard": shard}, "output": str(place / shard / name)})
    found = {name: try_out(place) for name, try_out in TRIED.items()}
    (place / f"tried-{rank}.json").write_text(json.dumps(found))


def learn(given: dict[str, Any], said: Progress = SILENT) -> None:
    """Make a run; of a subject, with all that is delivered from the base that was trained on."""
    config = config_from(given)
    if given["task"] == "dreambooth":
        train(config, progress=said)
    else:
        task = JOBS[config.task].build(config, said)
        fit(task, config.train, config.output, resume=config.resume, progress=said)


def of(error: type[Exception], work: Callable[[], object]) -> str:
    with pytest.raises(error) as refused:
        work()
    return re.sub(r"^process \d of 2: ", "", str(refused.value))  # whichever told the other


def shared_vit() -> tuple[ViTForImageClassification, AdapterManager, Sharding, Shared]:
    model, sharding = tiny_vit(), Sharding(torch.device("cpu"))
    manager = manage(model)
    manager.add("first", LoraSpec(rank=2, targets="attention"))
    return model, manager, sharding, sharding.shard(model)


def whole_weights(place: Path) -> dict[str, str]:
    """What is said where weights are asked for that are shared out."""
    del place
    model, manager, _, _ = shared_vit()
    layer = "model.vit.layers.0.attention.q_proj"

    def added(spec: AdapterSpec) -> Callable[[], object]:
        return lambda: manager.add("second", spec)

    said = {
        "merge": of(AdapterError, manager.merge), "base": of(AdapterError, lambda: manager.base_weights([layer])),
        "dora": of(AdapterError, added(DoraSpec(rank=2, targets="attention"))),
        "full": of(AdapterError, added(FullSpec(targets="attention"))),
        "pissa": of(AdapterError, added(LoraSpec(rank=2, targets="attention", init="pissa"))),
        "files": str(weights_of(model)),
    }  # fmt: skip
    manager.add("second", LoraSpec(rank=3, targets="mlp"))
    captured = manager.capture("second")
    manager.remove("second")
    manager.attach("again", captured)
    same = manager.capture("again").tensors
    return {**said, "again": str(all(torch.equal(same[key], tensor) for key, tensor in captured.tensors.items()))}


def bad_bases(place: Path) -> dict[str, str]:
    """What is said of models that cannot be shared out."""
    sharding = Sharding(torch.device("cpu"))
    int8 = tiny_vit()
    layer = int8.vit.layers[0].attention.q_proj
    layer.weight = torch.nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    vit = settings(place)["vit"] | {"output": str(place / "bad")}
    full = vit | {"adapter": {"method": "full"}, "train": TRAIN | {"shard": "on"}}
    streaming = vit | {"train": TRAIN | {"shard": "on", "memory": {"stream": 0.5}}}
    skipping = new_whisper().requires_grad_(False)
    skipping.model.decoder.layerdrop = 0.1
    shapes = settings(place)["sdxl"] | {
        "data": {"instance": {"images": str(place / "mixed"), "prompt": "a photo of sks robot"}}, "preview": None,
        "score": {"every": 0}, "train": TRAIN | {"shard": "on", "evaluate_every": 0}, "output": str(place / "shapes"),
    }  # fmt: skip
    return {
        "blocks": of(ConfigError, lambda: sharding.shard(torch.nn.Linear(2, 2))),
        "int8": of(ConfigError, lambda: sharding.shard(int8.requires_grad_(False))),
        "full": of(VisionPeftError, lambda: learn(full)),
        "stream": of(VisionPeftError, lambda: learn(streaming)),
        "layerdrop": of(ConfigError, lambda: sharding.shard(skipping)),
        "shapes": of(VisionPeftError, lambda: learn(shapes)),
    }


def parts(place: Path) -> dict[str, Any]:
    """Sizes of parts, the order in which blocks are fetched, and a model that comes to be in parts."""
    del place
    model, _, sharding, shared = shared_vit()
    pixels = torch.ones(1, 3, 32, 32)
    for _ in range(2):
        model(pixel_values=pixels).logits.sum().backward()
    first, second = model.vit.layers
    ahead = first._get_fsdp_state()._states_to_forward_prefetch, second._get_fsdp_state()._states_to_backward_prefetch
    with torch.device("meta"):
        blank = ViTForImageClassification(model.config).requires_grad_(False)
    sharding.shard(blank, torch.bfloat16, fill=lambda part: part.fill_(0.5))
    filled = [p.to_local() if isinstance(p, DTensor) else p for p in blank.parameters()]
    with torch.no_grad():
        logits = blank(pixel_values=pixels.bfloat16()).logits
    unet = tiny_sdxl().unet.requires_grad_(False).to(memory_format=torch.channels_last)
    sharding.shard(unet)
    more = {"text_embeds": torch.ones(1, 32), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        strided = unet(torch.ones(1, 4, 16, 16), 3, torch.ones(1, 7, 64), added_cond_kwargs=more).sample
    said = ""
    with sharding.main_first():
        if os.environ["RANK"] == "0":
            said = of(TrainingError, lambda: model(pixel_values=pixels))
    return {
        **vars(shared), "ahead": [len(states) for states in ahead], "alone": said,
        "apart": [isinstance(p, DTensor) for p in first.parameters()].count(True),
        "filled": all(bool((p == 0.5).all()) and p.dtype == torch.bfloat16 for p in filled),
        "finite": bool(logits.isfinite().all()), "strided": bool(strided.isfinite().all()),
    }  # fmt: skip


TRIED: dict[str, Callable[[Path], Any]] = {"whole": whole_weights, "bad": bad_bases, "parts": parts}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have made all runs."""
    folder = tmp_path_factory.mktemp("shared")
    write_base(folder / "vit", "vit")
    write_pictures(folder / "pictures", {"red": 16, "green": 12, "blue": 8})
    for name in ("detr", "deformable_detr", "rt_detr"):
        write_base(folder / name, name)
    write_scenes(folder / "scenes" / "pictures", 24)
    write_whisper(folder / "whisper")
    write_speech(folder / "speech", 32)
    tiny_sdxl().save_pretrained(folder / "sdxl")
    (folder / "mixed").mkdir()
    for number, size in enumerate([(48, 48), (96, 48)]):
        Image.new("RGB", size).save(folder / "mixed" / f"{number}.png")
    (folder / "photos").mkdir()
    for number in range(3):
        noise = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def two(place: Path) -> Path:
    """The folder of the runs of two processes."""
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    done = run_together(WORK, place)
    assert [status for status, _ in done] == [0, 0], "\n".join(said for _, said in done)
    return place / "two"


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in log if line["kind"] == kind]


def figures(run: Path) -> list[float]:
    """What the log says of every step and every look at the adapter."""
    found = [lines(run, kind) for kind in ("train", "evaluate")]
    assert [line["step"] for line in found[0]] == [1, 2, 3, 4]
    names = ("loss", "gradient_norm", "log_likelihood", "wer", "score")
    return [line[name] for kind in found for line in kind for name in names if name in line]


def numbers(adapter: Adapter) -> torch.Tensor:
    """All values of an adapter, in the order of their names."""
    return torch.cat([tensor.flatten() for _, tensor in sorted({**adapter.tensors, **adapter.heads}.items())])


@pytest.mark.parametrize("name", list(settings(Path())))
def test_steps_figures_and_adapter_are_those_of_one_process(place: Path, two: Path, name: str):
    one = place / "one" / name
    learn(settings(place)[name] | {"output": str(one)})
    assert len(figures(one)) >= 10
    assert figures(two / name) == pytest.approx(figures(one), rel=1e-5, abs=1e-5)
    for step in ("step_000002", "step_000004"):
        file = Path("checkpoints", step, "adapter.safetensors")
        mine, theirs = Adapter.load(two / name / file), Adapter.load(one / file)
        assert mine.specs == theirs.specs
        off, size = numbers(mine) - numbers(theirs), numbers(theirs)
        assert torch.linalg.vector_norm(off) <= 1e-5 * torch.linalg.vector_norm(size)


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr"])
def test_a_shared_detector_learns_as_a_whole_one(two: Path, name: str):
    shared, whole = (two.parent / shard / name for shard in ("on", "off"))
    for mine, theirs in zip(lines(shared, "train"), lines(whole, "train"), strict=True):
        assert (mine["loss"], mine["gradient_norm"]) == pytest.approx(
            (theirs["loss"], theirs["gradient_norm"]), rel=1e-5
        )
    one, other = (Adapter.load(run / "checkpoints" / "step_000002" / "adapter.safetensors") for run in (shared, whole))
    assert torch.linalg.vector_norm(numbers(one) - numbers(other)) <= 1e-5 * torch.linalg.vector_norm(numbers(other))


def tried(two: Path, name: str) -> Any:
    first, second = (json.loads((two.parent / f"tried-{rank}.json").read_text())[name] for rank in (0, 1))
    assert first | {"alone": ""} == second | {"alone": ""}
    return first


def test_what_needs_whole_weights_is_refused(two: Path):
    said = tried(two, "whole")
    for wish, named in {"merge": "a merge", "dora": "'dora'", "full": "full tuning", "pissa": "'pissa'"}.items():
        assert named in said[wish]
        assert "shared out over processes" in said[wish]
    assert "model.vit.layers.0.attention.q_proj" in said["base"]
    assert said["files"] == "None"
    assert said["again"] == "True"


def test_models_that_cannot_be_shared_out_are_refused(two: Path):
    said = tried(two, "bad")
    assert "no repeated blocks" in said["blocks"]
    assert "is quantized" in said["int8"]
    assert "full tuning" in said["full"]
    assert "set stream to 0" in said["stream"]
    assert "'model.decoder' of the WhisperForConditionalGeneration skips layers" in said["layerdrop"]
    assert "set data.crop to center" in said["shapes"]


def test_each_process_has_half_of_the_blocks_and_fetches_the_next_ahead(two: Path):
    found = tried(two, "parts")
    assert found["here"] * 2 == found["whole"]
    assert found["blocks"] == 2
    assert found["ahead"] == [1, 1]
    assert found["apart"] == 16  # weights and biases of a layer, not the adapter's
    assert found["filled"]
    assert found["finite"]
    assert found["strided"]
    assert "need all processes" in found["alone"]


def test_the_run_says_what_is_shared_out(two: Path):
    said = (two.parent / "said" / "sdxl-0").read_text()
    assert "The base is shared out over 2 processes: 20 blocks of" in said
    assert not (two.parent / "said" / "sdxl-1").exists()  # one process speaks


def test_one_process_cannot_share(place: Path, tmp_path: Path):
    given = settings(place)["vit"] | {"train": TRAIN | {"shard": "on"}, "output": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="there is one: start it with"):
        learn(given)


def test_the_bench_on_a_small_model(tmp_path: Path):
    code = "import sys; from scripts.bench.sharded import main; main(sys.argv[1:])"
    done = run_together(code, "--work", tmp_path, "--tiny", "--steps", 2)
    assert [status for status, _ in done] == [0, 0], "\n".join(said for _, said in done)
    told = json.loads((tmp_path / "sharded.json").read_text())
    assert told["parameters"] > 20_000
    assert [row["device"] for row in told["processes"]] == ["cpu", "cpu"]
