"""A run's task with models that have no values, and with data made up in its settings' sizes."""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from visionpeft.errors import VisionPeftError
from visionpeft.progress import SILENT

if TYPE_CHECKING:
    from torch import Tensor, nn

    from visionpeft.config import ClassifyRun, DetectRun, DreamBoothRun, RunConfig, TranscribeRun
    from visionpeft.models.base import Base
    from visionpeft.models.speech import SpeechBase
    from visionpeft.models.vision import VisionBase
    from visionpeft.training.task import StepOutput, Task

_LABELS = 10
_AT_ONCE, _DECODED = 8, 4
"""Pictures that are drawn together, and that the VAE decodes together."""
_ASKED = {"classify": 64, "detect": 16, "transcribe": 8}
"""Samples that are evaluated together."""
_WORDS = 60
"""Of a text where the run's own cannot be read."""


@dataclass(frozen=True)
class Shapes:
    """A task without values.

    Attributes:
        task: with models on the meta device.
        models: all of its base, by name.
        asides: what the run does between its steps, by name.
        assumed: what was assumed, a sentence each, since it could not be read.
    """

    task: Task
    models: Mapping[str, nn.Module]
    asides: Mapping[str, Callable[[], None]]
    assumed: tuple[str, ...] = ()


def shapes_of(config: RunConfig, folder: Path) -> Shapes:
    """Build a run's task from shapes alone.

    Args:
        config: of the run.
        folder: an empty one, for made-up pictures and sound.

    Raises:
        BaseModelError: the base's shapes cannot be read.
        TargetError: a target matches nothing in it.
    """
    with torch.device("meta"):
        return _BUILDERS[config.task](config, folder)


def _dreambooth(config: DreamBoothRun, folder: Path) -> Shapes:
    from PIL import Image

    from visionpeft.models.base import load_base
    from visionpeft.tasks.dreambooth import DreamBooth

    base = load_base(config.base, device="meta")
    side = config.data.resolution or base.size
    Image.new("RGB", (side, side), "gray").save(folder / "1.png")
    instance = config.data.instance.model_copy(update={"images": folder})
    prior = config.data.prior and config.data.prior.model_copy(update={"images": folder})
    cache = "none" if config.data.cache == "none" else "memory"  # nothing without values is written to a disk
    data = config.data.model_copy(update={"instance": instance, "prior": prior, "cache": cache})
    task = DreamBooth(base, data, config.adapter, seed=config.train.seed)
    return Shapes(task, {"unet": base.unet, "vae": base.vae, **base.text_encoders}, _drawing(config, base, side))


def _drawing(config: DreamBoothRun, base: Base, side: int) -> dict[str, Callable[[], None]]:
    """Pictures of the class and for previews: one step of the UNet for as many as are made at once, and the VAE."""
    from visionpeft.models.prompts import encode_prompts, time_ids, unet_forward

    def drawn(count: int, guidance: float, pixels: int) -> None:
        at_once = count * (1 if guidance == 1.0 else 2)
        latent = pixels // base.latent_scale_factor
        weight = next(base.unet.parameters())
        noise = weight.new_empty(at_once, base.unet.config.in_channels, latent, latent)
        times = torch.empty(at_once, dtype=torch.long, device=weight.device)
        states = encode_prompts(base, ["a"] * at_once)
        rows = torch.empty(at_once, dtype=torch.long, device=weight.device)
        with base.on_device("unet"):
            unet_forward(base, noise, times, states.of(rows), time_ids(base, at_once, (pixels, pixels)))
        with base.on_device("vae"):
            base.vae.decode(noise[: min(count, _DECODED)])

    found: dict[str, Callable[[], None]] = {}
    if prior := (config.data.prior if config.data.prior and config.data.prior.images is None else None):
        found["class pictures"] = lambda: drawn(min(_AT_ONCE, prior.count), prior.guidance, side)
    if preview := config.preview:
        count = min(_AT_ONCE, len(preview.prompts) * len(preview.seeds))
        found["previews"] = lambda: drawn(count, preview.guidance, base.size)
    return found


def _classify(config: ClassifyRun, folder: Path) -> Shapes:
    from PIL import Image

    from visionpeft.data.classification import LabelledPictures, Splits, open_pictures
    from visionpeft.data.classification.labelled import Example
    from visionpeft.delivery.vision import framed_base
    from visionpeft.tasks.classification import Classification, Learning

    class Gray:
        def read(self, name: str) -> Image.Image:
            del name
            return Image.new("RGB", (base.preprocessing.size[1], base.preprocessing.size[0]), "gray")

    found = _opened(lambda: open_pictures(config.data, SILENT))
    labels = found.labels if found else tuple(map(str, range(_LABELS)))
    kind = found.kind if found else "multiclass"
    base = framed_base(config, SILENT, device="meta")
    examples = tuple(Example(f"{n}.png", (n % len(labels),)) for n in range(max(len(labels), 2)))
    reader: Any = Gray()
    pictures = LabelledPictures(labels, kind, examples, reader)
    splits = Splits(pictures, pictures.subset([]), pictures.subset([]))
    data = config.data.model_copy(update={"workers": 1})
    task = Classification(
        base, splits, data, config.adapter, Learning(config.loss, layer_decay=config.layer_decay),
        seed=config.train.seed,
    )  # fmt: skip
    said = () if found else (f"the pictures cannot be read: {_LABELS} labels are assumed.",)
    return Shapes(
        task, {"model": base.model}, _asking(config, lambda count: task.classifier.logits(_pixels(base, count))), said
    )


def _pixels(base: VisionBase, count: int) -> Tensor:
    weight = next(base.model.parameters())
    return torch.empty(count, 3, *base.preprocessing.size, device=weight.device)


def _asking(config: RunConfig, ask: Callable[[int], object]) -> dict[str, Callable[[], None]]:
    """The evaluation, where there is one: as many samples as are asked about at once."""
    if not config.train.evaluate_every:
        return {}
    return {"evaluation": lambda: _nothing(ask(_ASKED[config.task]))}


def _nothing(value: object) -> None:
    del value


def _detect(config: DetectRun, folder: Path) -> Shapes:
    import numpy as np
    from PIL import Image

    from visionpeft.data.detection.readers import open_scenes
    from visionpeft.data.detection.scenes import LabelledScenes, Scene
    from visionpeft.data.detection.splits import SceneSplits
    from visionpeft.delivery.vision import framed_base
    from visionpeft.tasks.detection import Detection

    found = _opened(lambda: open_scenes(config.data, SILENT))
    labels = found.labels if found else tuple(map(str, range(_LABELS)))
    most = max((len(scene) for scene in found.scenes), default=1) if found else 1
    base = framed_base(config, SILENT, device="meta")
    height, width = base.preprocessing.size
    path = folder / "1.png"
    Image.new("RGB", (width, height), "gray").save(path)
    boxes = np.tile(np.array([[0, 0, width / 2, height / 2]], np.float32), (max(1, most), 1))
    scene = Scene("1.png", width, height, boxes, np.zeros(len(boxes), np.int64), path=path)
    scenes = LabelledScenes(labels, (scene,))
    splits = SceneSplits(scenes, scenes.subset([]), scenes.subset([]))
    data = config.data.model_copy(update={"workers": 1})
    task = Detection(
        base, splits, data, config.adapter, train_boxes=config.train_boxes, auxiliary=config.auxiliary_loss,
        seed=config.train.seed,
    )  # fmt: skip
    said = () if found else (f"the pictures cannot be read: {_LABELS} labels and 16 boxes a picture are assumed.",)
    if task.unrecordable:  # the host matches boxes by their values
        unmatching: Any = task
        unmatching.loss = partial(_unmatched, base)
    ask = _asking(config, lambda count: base.model(pixel_values=_pixels(base, count).to(base.dtype)))
    return Shapes(task, {"model": base.model}, ask, said)


def _unmatched(base: VisionBase, batch: Any, rng: object) -> StepOutput:
    """A loss of all that a detector answers, in place of one whose boxes are matched."""
    from visionpeft.training.task import StepOutput

    del rng
    found = base.model(pixel_values=batch.pixels.to(base.dtype))
    total = found.logits.float().square().sum() + found.pred_boxes.float().square().sum()
    return StepOutput(total, torch.ones((), device=batch.pixels.device))


def _transcribe(config: TranscribeRun, folder: Path) -> Shapes:
    from visionpeft.data.speech.readers import open_speech
    from visionpeft.data.speech.splits import SpeechSplits
    from visionpeft.data.speech.utterances import Utterance, Utterances
    from visionpeft.inference.about import SpeechAbout
    from visionpeft.models.speech import load_speech
    from visionpeft.tasks.speech import Transcription

    found = _opened(lambda: open_speech(config.data, SILENT))
    text = max((item.text for item in found.items), key=len) if found and len(found) else " ".join(["word"] * _WORDS)
    base = load_speech(config.base, device="meta")
    path = folder / "1.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(32_000))
    item = Utterance("1.wav", path, 0.0, 1.0, text, seconds=1.0)
    told = SpeechAbout(
        language=config.language, task="translate" if config.translate else "transcribe",
    )  # fmt: skip
    utterances = Utterances((item,))
    splits = SpeechSplits(utterances, utterances.subset([]), utterances.subset([]))
    data = config.data.model_copy(update={"workers": 1, "keep": False, "grouped": False})
    task = Transcription(base, splits, data, config.adapter, told, seed=config.train.seed)
    said = () if found else (f"the speech cannot be read: texts of {_WORDS} words are assumed.",)
    ask = _asking(config, lambda count: _heard(base, count))
    return Shapes(task, {"model": base.model}, ask, said)


def _heard(base: SpeechBase, count: int) -> object:
    """What is heard of so many recordings, and the decoder's state of whole texts: what writing them down takes."""
    model, weight = base.model, next(base.model.parameters())
    bins, frames = model.config.num_mel_bins, 2 * model.config.max_source_positions
    sound = torch.empty(count, bins, frames, device=weight.device, dtype=base.dtype)
    words = torch.empty(count, model.config.max_target_positions, dtype=torch.long, device=weight.device)
    return model.model(input_features=sound, decoder_input_ids=words, use_cache=True)


def _opened(read: Callable[[], Any]) -> Any:
    """The run's data, where they can be read; None where not: a plan may be made before they are there."""
    try:
        return read()
    except (VisionPeftError, OSError):
        return None


_BUILDERS: Mapping[str, Callable[[Any, Path], Shapes]] = {
    "dreambooth": _dreambooth,
    "classify": _classify,
    "detect": _detect,
    "transcribe": _transcribe,
}
"""A row for every task of ``config.TASKS``."""
