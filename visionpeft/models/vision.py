"""A classifier or detector, loaded from wherever it is: embedded, a folder of transformers, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from visionpeft.errors import BaseModelError, MissingExtraError, did_you_mean
from visionpeft.models.base import ASSETS, check_embedded, weights_hash
from visionpeft.models.family import Family, Sight, families, family_of
from visionpeft.models.gated import divide_gated_layers
from visionpeft.models.norms import freeze_batch_norms, live_batch_norms
from visionpeft.models.positions import resize_positions
from visionpeft.models.preprocess import Preprocessing, read_processor
from visionpeft.models.quiet import without_loading_bars, without_reports
from visionpeft.models.stored import stored_type
from visionpeft.models.tower import TOWERS, ClipTowerClassifier, DinoV3Classifier
from visionpeft.progress import SILENT, Progress

VISION_BASES = {"visionpeft/emoji-vit": "emoji-sd/clip", "visionpeft/emoji-detr": "emoji-detr"}
"""The embedded bases: id -> folder in the package's assets."""

VisionTask = Literal["classify", "detect"]
OURS, THEIRS = "preprocessor.json", "preprocessor_config.json"
_AUTO = {"classify": "AutoModelForImageClassification", "detect": "AutoModelForObjectDetection"}
_MOST_BYTES = 1 << 20
T = TypeVar("T")


@dataclass
class VisionBase:
    """A classifier or detector and what the rest of the program asks of it.

    Attributes:
        model: an image classifier or object detector of transformers, in evaluation mode. Its batch norms are frozen.
        family: "vit", "rt_detr" …, as a `Family`.
        id: what it was loaded by.
        hash: content hash of its weights at its picture size; equal for float32 and float16 copies.
        preprocessing: how it wants its pictures.
    """

    model: nn.Module
    family: Family
    id: str
    hash: str
    preprocessing: Preprocessing

    @property
    def sight(self) -> Sight:
        """What the family tells of models that look at pictures."""
        return self.family.sight or Sight("classify")

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes that it was trained on, in the order of its logits."""
        config: Any = self.model.config
        return tuple(str(config.id2label[place]) for place in range(config.num_labels))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights, which its pixels take too."""
        return next(parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> VisionBase:
        """Move the model and return self; adapters' masters stay float32."""
        self.model.to(device=device, dtype=dtype)
        return self


def load_vision(
    ref: str | Path,
    *,
    task: VisionTask,
    image_size: int | tuple[int, int] | None = None,
    scratch: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    stored: bool = False,
    progress: Progress = SILENT,
) -> VisionBase:
    """Load a classifier or detector; only safetensors, never a pickle.

    Args:
        ref: "visionpeft/emoji-vit" | "visionpeft/emoji-detr" | a folder in the layout of transformers | a hub id.
        task: "classify" or "detect".
        image_size: the side, or (height, width), of the pixels it shall see; None takes the base's. Learned positions
            are interpolated for good, so the hash tells the size.
        scratch: take the network, but random weights.
        seed: of these weights.
        device: where it goes; "meta" takes the shapes alone: no weights are read, and the hash is "".
        dtype: of its weights; None means float32.
        stored: leave weights in the one type that a folder has them in, so that they stay in their files, which
            processes share, until they are needed; float32 where positions are interpolated.
        progress: is told what is missing in the base, or done in another way than it says; and of a network from
            scratch that its batch norms do nothing.

    Raises:
        BaseModelError: not found, not readable, a pickle, of an unknown family, not for the task, or a size that it
            cannot take; says what to do.
        MissingExtraError: the base needs a package that is not there.
    """
    empty = torch.device(device).type == "meta"
    name, place = str(ref), _place(ref)
    config = _reading(name, lambda: _config(place))
    kept = (stored_type(place) if stored else None) or torch.float32
    _check_backbone(name, config)
    bare = torch.device("meta") if empty else nullcontext()
    with torch.random.fork_rng(devices=[]), without_loading_bars(), without_reports(), bare:
        torch.manual_seed(seed)
        new = scratch or empty
        model = _reading(
            name, lambda: _built(config, task) if new else _read(name, place, config, task, kept, progress)
        )
    family = _family(name, model, task)
    if scratch and not empty and live_batch_norms(model):
        progress.say(f"'{name}' has batch norms, which stay frozen: with random weights they normalise nothing.")
    freeze_batch_norms(model)
    divide_gated_layers(model)
    native = _native(config, task)
    preprocessing = _preprocessing(name, place, native, progress)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size or preprocessing.size
    if size != native and kept != torch.float32:
        kept = torch.float32  # of interpolated positions, which the hash tells
        model.float()
    _resize(name, model, family, native, size)
    preprocessing = preprocessing.at(*size)
    model.eval()
    told = "" if empty else weights_hash({"model": model}, family)
    base = VisionBase(model, family, name, told, preprocessing)
    return base.to(device, dtype or kept)


def class_logits(base: VisionBase, pixels: Tensor) -> Tensor:
    """Return the logits [N, C] of pixels [N, 3, H, W]."""
    return base.model(pixel_values=pixels.to(base.device, base.dtype)).logits


def _place(ref: str | Path) -> str:
    name, path = str(ref), Path(ref)
    if name in VISION_BASES:
        path = ASSETS / VISION_BASES[name]
        if not (path / "config.json").is_file():
            raise BaseModelError(f"The embedded base '{name}' is not in this installation; install the package anew.")
        return str(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BaseModelError(f"{path}: no config.json there; give the folder of a model of transformers.")
        if not list(path.glob("*.safetensors")):
            raise BaseModelError(f"{path}: no .safetensors there; convert the weights (pickles are not loaded).")
        return str(path)
    near = did_you_mean(name, [*VISION_BASES, *(str(other) for other in path.parent.glob("*"))])
    if name.count("/") != 1 or name.startswith((".", "/")) or path.exists():
        raise BaseModelError(f"{name}: there is no such base or folder.{near}")
    check_embedded(name, VISION_BASES)
    return name


def _config(place: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(place)


def _check_backbone(name: str, config: Any) -> None:
    backbone = getattr(config, "backbone_config", None)
    timm = getattr(config, "use_timm_backbone", False) or getattr(backbone, "model_type", "") == "timm_backbone"
    if timm and find_spec("timm") is None:
        raise MissingExtraError(
            f"'{name}' has a backbone of the package timm, which is not installed: pip install timm, or take a copy of"
            " it with a backbone of transformers (revision 'no_timm' of the DETR models)."
        )


def _built(config: Any, task: VisionTask) -> nn.Module:
    import transformers

    if config.model_type in TOWERS:
        tower, classifier = TOWERS[config.model_type]
        return classifier(getattr(transformers, tower)(config))
    return getattr(transformers, _AUTO[task]).from_config(config)


def _read(name: str, place: str, config: Any, task: VisionTask, dtype: torch.dtype, progress: Progress) -> nn.Module:
    import transformers

    tower = TOWERS.get(config.model_type)
    kind = getattr(transformers, tower[0] if tower else _AUTO[task])
    model, info = kind.from_pretrained(
        place, config=config, use_safetensors=True, dtype=dtype, output_loading_info=True
    )
    missing = set(info["missing_keys"])
    if tower:
        model = tower[1](model)
        missing |= {f"classifier.{key}" for key in model.classifier.state_dict()}
    _account(name, model, missing, sorted(info["unexpected_keys"]), progress)
    return model


def _account(name: str, model: nn.Module, missing: set[str], extra: list[str], progress: Progress) -> None:
    """Say what the base's file lacks or has too much; heads that it lacks become zero, and so the same each time."""
    heads = tuple((family_of(model).sight or Sight("classify")).heads(model))
    lacking = sorted(key for key in missing if not key.startswith(heads))
    if lacking:
        raise BaseModelError(f"'{name}' lacks {len(lacking)} of the model's weights, '{lacking[0]}' for one.")
    for key in missing:
        nn.init.zeros_(model.get_parameter(key))
    if missing and not isinstance(model, ClipTowerClassifier | DinoV3Classifier):
        progress.say(f"'{name}' has no head for this task: its logits are 0 until one is trained.")
    if extra:
        progress.say(f"'{name}' has {len(extra)} tensors that are not used, '{extra[0]}' for one.")


def _family(name: str, model: nn.Module, task: VisionTask) -> Family:
    family = family_of(model)
    if family.sight is None or family.sight.task != task:
        fitting = ", ".join(one.name for one in families() if one.sight and one.sight.task == task)
        raise BaseModelError(f"'{name}' is a '{family.name}', not a base to {task} with; there is {fitting}.")
    return family


def _preprocessing(name: str, place: str, size: tuple[int, int], progress: Progress) -> Preprocessing:
    ours = Path(place) / OURS
    if ours.is_file():
        return _reading(name, lambda: Preprocessing.model_validate(_json(ours)))
    theirs = _processor(place)
    if theirs is None:
        progress.say(
            f"'{name}' does not say how it wants its pictures: {size[0]}x{size[1]} pixels in -1 to 1 are taken."
        )
        return Preprocessing(size=size)
    found, lines = read_processor(theirs, size)
    for line in lines:
        progress.say(f"'{name}': {line}.")
    return found


def _processor(place: str) -> dict[str, Any] | None:
    if Path(place).is_dir():
        file = Path(place) / THEIRS
        return _json(file) if file.is_file() else None
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return ImageProcessingMixin.get_image_processor_dict(place)[0]
    except (OSError, ValueError):
        return None


def _json(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _MOST_BYTES:
        raise BaseModelError(f"{file}: larger than a settings file may be.")
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise BaseModelError(f"{file}: a table of settings was expected.")
    return value


def _native(config: Any, task: VisionTask) -> tuple[int, int]:
    """(height, width) that a model was made for, as far as its configuration tells; else what most are made for."""
    config = getattr(config, "vision_config", config)
    side = getattr(config, "image_size", None) or (224 if task == "classify" else 640)
    return (int(side[0]), int(side[1])) if isinstance(side, list | tuple) else (int(side), int(side))


def _resize(name: str, model: nn.Module, family: Family, native: tuple[int, int], size: tuple[int, int]) -> None:
    sight = family.sight or Sight("classify")
    step = sight.step(model)
    if size[0] % step or size[1] % step or min(size) < step:
        raise BaseModelError(f"'{name}': the sides of {size[0]}x{size[1]} must be multiples of {step} pixels.")
    if size != native and sight.task == "classify":
        resize_positions(model, size)


def _reading(name: str, read: Callable[[], T]) -> T:
    """Do `read()` and turn what the libraries raise into one clear line."""
    try:
        return read()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BaseModelError(
            f"'{name}' cannot be loaded: {reason[:200]} Give a folder in the layout of transformers with whole"
            " .safetensors, or a hub id that can be reached."
        ) from error
