"""A run's task with models that have no values, and with data made up in its settings' sizes."""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from visionpeft.errors import VisionPeftError
from visionpeft.progress import SILENT

if TYPE_CHECKING:
    from torch import nn

    from visionpeft.config import ClassifyRun, DetectRun, DreamBoothRun, RunConfig, TranscribeRun
    from visionpeft.training.task import Task

_LABELS = 10
_WORDS = 60
"""Of a text where the run's own cannot be read."""


@dataclass(frozen=True)
class Shapes:
    """A task without values.

    Attributes:
        task: with models on the meta device.
        models: all of its base, by name.
        assumed: what was assumed, a sentence each, since it could not be read.
    """

    task: Task
    models: Mapping[str, nn.Module]
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
    # each draw is encoded when it is asked for: nothing without values can be kept by its values
    data = config.data.model_copy(update={"instance": instance, "prior": prior, "cache": "none"})
    task = DreamBooth(base, data, config.adapter, seed=config.train.seed)
    return Shapes(task, {"unet": base.unet, "vae": base.vae, **base.text_encoders})


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
    data = config.data.model_copy(update={"workers": 0})
    task = Classification(
        base, splits, data, config.adapter, Learning(config.loss, layer_decay=config.layer_decay),
        seed=config.train.seed,
    )  # fmt: skip
    said = () if found else (f"the pictures cannot be read: {_LABELS} labels are assumed.",)
    return Shapes(task, {"model": base.model}, said)


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
    data = config.data.model_copy(update={"workers": 0})
    task = Detection(
        base, splits, data, config.adapter, train_boxes=config.train_boxes, auxiliary=config.auxiliary_loss,
        seed=config.train.seed,
    )  # fmt: skip
    said = () if found else (f"the pictures cannot be read: {_LABELS} labels and 16 boxes a picture are assumed.",)
    return Shapes(task, {"model": base.model}, said)


def _transcribe(config: TranscribeRun, folder: Path) -> Shapes:
    from visionpeft.compute.int8 import quantize_linear
    from visionpeft.data.speech.readers import open_speech
    from visionpeft.data.speech.splits import SpeechSplits
    from visionpeft.data.speech.utterances import Utterance, Utterances
    from visionpeft.inference.listener import SpeechAbout
    from visionpeft.models.speech import load_speech
    from visionpeft.tasks.speech import Transcription

    found = _opened(lambda: open_speech(config.data, SILENT))
    text = max((item.text for item in found.items), key=len) if found and len(found) else " ".join(["word"] * _WORDS)
    base = load_speech(config.base, device="meta")
    if config.int8:
        quantize_linear(base.model)
    path = folder / "1.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes(bytes(32_000))
    item = Utterance("1.wav", path, 0.0, 1.0, text, seconds=1.0)
    told = SpeechAbout(
        language=config.language, task="translate" if config.translate else "transcribe",
        timestamps=config.timestamps and False,
    )  # fmt: skip
    utterances = Utterances((item,))
    splits = SpeechSplits(utterances, utterances.subset([]), utterances.subset([]))
    data = config.data.model_copy(update={"workers": 0, "keep": False, "grouped": False})
    task = Transcription(base, splits, data, config.adapter, told, seed=config.train.seed)
    said = () if found else (f"the speech cannot be read: texts of {_WORDS} words are assumed.",)
    return Shapes(task, {"model": base.model}, said)


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
