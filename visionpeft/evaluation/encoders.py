"""Pictures and texts as vectors that can be compared: the embedded tower, CLIP, DINOv2, ViT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from visionpeft import safefile
from visionpeft.errors import BaseModelError, did_you_mean
from visionpeft.models.preprocess import Preprocessing, read_processor
from visionpeft.models.quiet import without_loading_bars

EMBEDDED = "embedded"
_BATCH = 32
T = TypeVar("T")


class HasPipeline(Protocol):
    """A base model: what the embedded encoder needs of it is where its folder is."""

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline."""
        ...


@dataclass(frozen=True)
class Encoder:
    """An image tower and, where there is one, the text tower that was trained with it.

    Attributes:
        name: what it was loaded from; the same name means the same vectors.
        embed_pictures: pixels [N, 3, H, W] to vectors [N, D].
        embed_texts: texts to vectors [N, D]; None where the encoder reads no text.
        preprocess: pictures to pixels.
        device: where the towers are.
        view: picks out of picture vectors [N, D] what is of the thing shown; None where the encoder has no such view.
    """

    name: str
    embed_pictures: Callable[[Tensor], Tensor]
    embed_texts: Callable[[list[str]], Tensor] | None
    preprocess: Preprocessing
    device: torch.device
    view: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return one unit vector a picture, [N, D] float32 on the CPU.

        Raises:
            ValueError: no pictures.
        """
        if not pictures:
            raise ValueError("no pictures to encode")
        parts = [pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH)]
        return torch.cat([_unit(self.embed_pictures(self.preprocess.pixels(part).to(self.device))) for part in parts])

    def things(self, vectors: Tensor) -> Tensor:
        """Return unit vectors [N, K] of the things shown, from what :meth:`pictures` gave, [N, D].

        A CLIP sees the background as well as the thing, so one subject on two grounds may be less alike than two
        subjects on one. Through the view, where the encoder has one, only the thing counts.
        """
        return vectors if self.view is None else _unit(self.view(vectors))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """Return one unit vector a text, [N, D] float32 on the CPU; None where the encoder reads no text.

        Raises:
            ValueError: no texts.
        """
        if not texts:
            raise ValueError("no texts to encode")
        return None if self.embed_texts is None else _unit(self.embed_texts(list(texts)))


def load_encoder(ref: str = EMBEDDED, base: HasPipeline | None = None, device: str | torch.device = "cpu") -> Encoder:
    """Load an encoder, in float32 and frozen, with weights of its own that no adapter touches.

    Args:
        ref: "embedded", a hub id, or a folder in the layout of transformers: CLIP, DINOv2 or ViT.
        base: the model that is trained; "embedded" takes the tower in its folder where it has one, else the one in
            this package.
        device: where to compute.

    Raises:
        BaseModelError: nothing is there, the hub cannot be reached, or it is a model of another kind.
    """
    place = torch.device(device)
    if ref == EMBEDDED:
        return _embedded(_embedded_folder(base), place)
    if _looks_like_path(ref) and not Path(ref).is_dir():
        raise BaseModelError(
            f"no encoder at '{ref}': expected a folder with config.json, or a hub id.{_near(Path(ref))}"
        )
    kind = _loading(ref, _model_type)
    if kind not in _KINDS:
        raise BaseModelError(f"the encoder '{ref}' is a '{kind}' model: expected one of {', '.join(sorted(_KINDS))}")
    return _loading(ref, lambda name: _KINDS[kind](name, place))


def _clip(ref: str, device: torch.device) -> Encoder:
    """A CLIP with both towers."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    vision = _frozen(CLIPVisionModelWithProjection, ref, device)
    text = _frozen(CLIPTextModelWithProjection, ref, device)
    tokenizer = AutoTokenizer.from_pretrained(ref)

    def embed_texts(texts: list[str]) -> Tensor:
        return text(**_tokens(tokenizer, texts, device)).text_embeds

    preprocess = _preprocessing(ref, vision)
    return Encoder(ref, lambda pixels: vision(pixel_values=pixels).image_embeds, embed_texts, preprocess, device)


def _clip_vision(ref: str, device: torch.device) -> Encoder:
    """The image tower of a CLIP."""
    from transformers import CLIPVisionModelWithProjection

    vision = _frozen(CLIPVisionModelWithProjection, ref, device)
    preprocess = _preprocessing(ref, vision)
    return Encoder(ref, lambda pixels: vision(pixel_values=pixels).image_embeds, None, preprocess, device)


def _vit(ref: str, device: torch.device) -> Encoder:
    """A ViT or DINOv2: the class token after the last norm, as DINO's own evaluation takes it."""
    from transformers import AutoModel

    model = _frozen(AutoModel, ref, device)
    preprocess = _preprocessing(ref, model)
    return Encoder(ref, lambda pixels: model(pixel_values=pixels).last_hidden_state[:, 0], None, preprocess, device)


_KINDS: dict[str, Callable[[str, torch.device], Encoder]] = {
    "clip": _clip,
    "clip_vision_model": _clip_vision,
    "dinov2": _vit,
    "dinov2_with_registers": _vit,
    "vit": _vit,
}


def _embedded(folder: Path, device: torch.device) -> Encoder:
    """The small CLIP that was trained with a base: image tower in ``clip/``, text tower the base's own text encoder."""
    from transformers import AutoTokenizer, CLIPTextModel

    pictures = _loading(str(folder / "clip"), lambda name: _clip_vision(name, device))
    text = _loading(str(folder / "text_encoder"), lambda name: _frozen(CLIPTextModel, name, device))
    tokenizer = _loading(str(folder / "tokenizer"), AutoTokenizer.from_pretrained)
    projection, _ = safefile.load(folder / "clip" / "text_projection.safetensors")
    weight = projection["text_projection.weight"].to(device, torch.float32)

    def embed_texts(texts: list[str]) -> Tensor:
        return F.linear(text(**_tokens(tokenizer, texts, device)).pooler_output, weight)

    view = _subject_view(folder / "clip" / "subject_projection.safetensors")
    return Encoder(EMBEDDED, pictures.embed_pictures, embed_texts, pictures.preprocess, device, view)


def _subject_view(path: Path) -> Callable[[Tensor], Tensor] | None:
    """The linear map v -> W (v - m) onto the directions that tell things apart, where a base has one."""
    if not path.is_file():
        return None
    tensors, _ = safefile.load(path)
    weight, mean = tensors["weight"].float(), tensors["mean"].float()
    return lambda vectors: F.linear(vectors - mean, weight)


def _embedded_folder(base: HasPipeline | None) -> Path:
    """The base's own folder where it has an image tower, else the embedded base in this package."""
    own = Path(str(getattr(base.pipeline, "name_or_path", ""))) if base is not None else None
    if own is not None and (own / "clip" / "config.json").is_file():
        return own
    return Path(str(files("visionpeft") / "assets" / "emoji-sd"))


def _model_type(ref: str) -> str:
    from transformers import AutoConfig

    return str(AutoConfig.from_pretrained(ref).model_type)


def _preprocessing(ref: str, tower: Any) -> Preprocessing:
    """Exactly the tower's own: scores of pictures that were framed in another way are not comparable."""
    from transformers.image_processing_base import ImageProcessingMixin

    config, _ = ImageProcessingMixin.get_image_processor_dict(ref)
    preprocessing, differences = read_processor(config, (tower.config.image_size,) * 2)
    if differences:
        raise BaseModelError(f"the encoder '{ref}' frames pictures in a way that is not known: {differences[0]}")
    return preprocessing


def _frozen(kind: Any, ref: str, device: torch.device) -> Any:
    """Load from safetensors only: a pickle is never opened."""
    return kind.from_pretrained(ref, use_safetensors=True, dtype=torch.float32).to(device).eval().requires_grad_(False)


def _tokens(tokenizer: Any, texts: list[str], device: torch.device) -> dict[str, Tensor]:
    """Tokens padded and cut to the text tower's length; the tower looks no farther than its end token."""
    length = min(int(tokenizer.model_max_length), 77)
    batch = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return {"input_ids": batch.input_ids.to(device)}


def _loading(ref: str, load: Callable[[str], T]) -> T:
    """Do ``load(ref)`` and turn what the libraries raise into one clear line."""
    try:
        with without_loading_bars():
            return load(ref)
    except BaseModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BaseModelError(
            f"the encoder '{ref}' cannot be loaded: {reason[:300]} Set encoder to 'embedded', a hub id that can be "
            "reached, or a folder in the layout of transformers."
        ) from error


def _looks_like_path(ref: str) -> bool:
    return ref.startswith((".", "/")) or ref.count("/") != 1 or Path(ref).exists()


def _near(path: Path) -> str:
    parent = path.parent
    return did_you_mean(path.name, [child.name for child in parent.iterdir()]) if parent.is_dir() else ""


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1).cpu()
