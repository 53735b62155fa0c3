"""A base model, loaded from wherever it is: embedded, a hub id, a diffusers folder or a single original checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from visionpeft.errors import BaseModelError, did_you_mean
from visionpeft.models.empty import hub_folder, shapes_of_pipeline
from visionpeft.models.family import Family, components_of, family_of
from visionpeft.models.quiet import without_loading_bars
from visionpeft.models.stored import stored_type

EMBEDDED = {"visionpeft/emoji-sd": "emoji-sd"}
ASSETS = Path(__file__).parent.parent / "assets"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_OURS = "visionpeft/"
_SAMPLES = 64
_UNSAFE = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


class Places(Protocol):
    """What knows where a base's models are, and brings them where they compute."""

    tight: bool
    device: torch.device

    def on_device(self, *names: str) -> AbstractContextManager[None]:
        """Have these models where they compute while the context lasts."""
        ...


@dataclass
class Base:
    """A Stable Diffusion pipeline and what the rest of the program asks of it.

    Attributes:
        pipeline: the diffusers pipeline.
        family: "sd1", "sd2" or "sdxl", as a `Family`.
        id: what it was loaded by.
        hash: content hash of UNet and text encoders; equal for float32 and float16 copies of the same weights.
        places: brings its models to the device and away; None: they stay where they are.
    """

    pipeline: Any
    family: Family
    id: str
    hash: str
    places: Places | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes: where its models are, or are brought to."""
        return next(self.unet.parameters()).device if self.places is None else self.places.device

    @property
    def models(self) -> dict[str, nn.Module]:
        """All of its models: "unet", "vae", and text encoders by component name."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}

    def on_device(self, *names: str) -> AbstractContextManager[None]:
        """Return the context in which these of its models are where it computes."""
        return nullcontext() if self.places is None else self.places.on_device(*names)

    @property
    def unet(self) -> Any:
        """The UNet."""
        return self.pipeline.unet

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.pipeline.vae

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """Text encoders by component name, in order."""
        return {name: part for name, part in components_of(self.pipeline).items() if name.startswith("text_encoder")}

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Tokenizers by the name of their text encoder."""
        return {name: getattr(self.pipeline, name.replace("text_encoder", "tokenizer")) for name in self.text_encoders}

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon", "v_prediction" or "sample"."""
        return str(self.pipeline.scheduler.config.prediction_type)

    @cached_property
    def latent_scale_factor(self) -> int:
        """Pixels along one side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """The native picture's side in pixels."""
        return int(self.unet.config.sample_size) * self.latent_scale_factor

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Base:
        """Move the pipeline and return self; adapters' masters stay float32."""
        for part in (self.unet, self.vae, *self.text_encoders.values()):
            nn.Module.to(part, device=device, dtype=dtype)  # diffusers' own `to` warns of every change of type
        return self


def load_base(
    ref: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    tokenizer: str | Path | Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    stored: bool = False,
) -> Base:
    """Load a base model; only safetensors, never a pickle.

    Args:
        ref: "visionpeft/emoji-sd" | a diffusers folder | a single `.safetensors` checkpoint in the original layout of
            SD 1.x, SD 2.x or SDXL | a hub id.
        dtype: of its weights; None means float32.
        device: where it goes; "meta" takes the shapes alone: no weights are read, and the hash is "".
        tokenizer: for a single checkpoint, which holds none: a folder with a CLIP tokenizer (or with `tokenizer` and
            `tokenizer_2` inside), a hub id, or tokenizers by text encoder. Without it the tokenizer is looked for
            beside the file and in the hub's cache.
        prediction_type: for a single checkpoint: "epsilon" or "v_prediction", where the file does not tell.
        stored: leave weights in the one type that a folder has them in, so that they stay in their files, which
            processes share, until they are needed.

    Raises:
        BaseModelError: not found, not readable, a pickle, or of an unknown family; says what to do.
    """
    from visionpeft.models.checkpoint import load_checkpoint

    name, path, empty = str(ref), Path(ref), torch.device(device).type == "meta"
    if name in EMBEDDED:
        path = ASSETS / EMBEDDED[name]
        if not path.is_dir():
            raise BaseModelError(f"The embedded base '{name}' is not in this installation; install the package anew.")
    check_embedded(name, EMBEDDED)
    if path.suffix in _UNSAFE:
        raise BaseModelError(
            f"{path}: a '{path.suffix}' file may run code when loaded; convert it to .safetensors first."
        )
    kept = (stored_type(path) if stored else None) or torch.float32
    if path.is_file():
        pipeline = load_checkpoint(path, tokenizer=tokenizer, prediction_type=prediction_type, empty=empty)
    elif empty:
        pipeline = shapes_of_pipeline(name, path if path.is_dir() else hub_folder(name))
    elif path.is_dir():
        pipeline = _from_folder(path, dtype or kept)
    else:
        pipeline = _from_hub(name, path, dtype)
    pipeline.set_progress_bar_config(disable=True)
    base = Base(pipeline, family_of(pipeline), name, "" if empty else weights_hash(components_of(pipeline)))
    for part in (base.unet, base.vae, *base.text_encoders.values()):
        part.eval()
    return base.to(device, dtype or kept)


def check_embedded(name: str, known: Collection[str]) -> None:
    """Refuse a base that is named as an embedded one is, and is none of the ``known``: the hub has none of them.

    Raises:
        BaseModelError: it is none of them.
    """
    if name.startswith(_OURS) and name not in known and not Path(name).exists():
        here = ", ".join(f"'{one}'" for one in known)
        raise BaseModelError(f"'{name}' is not an embedded base for this: there is {here}.{did_you_mean(name, known)}")


def weights_hash(components: Mapping[str, nn.Module], family: Family | None = None) -> str:
    """SHA-256 of every parameter's name, shape and up to 64 evenly spaced values as float16, in the order of the names.

    Names are canonical, so library versions do not matter; float32 and float16 copies of the same weights agree.

    Args:
        components: name -> module.
        family: whose names are canonical; None takes the names of Stable Diffusion.
    """
    called = family.canonical if family else None
    digest = hashlib.sha256()
    for component, module in sorted(components.items()):
        parameters = {
            called(component, name) if called else _canonical(component, module, name): value
            for name, value in module.named_parameters()
        }
        for name in sorted(parameters):
            flat = parameters[name].detach().flatten()
            places = torch.linspace(0, max(len(flat) - 1, 0), min(_SAMPLES, len(flat)), dtype=torch.float64).long()
            values = flat[places.to(flat.device)].half().cpu()
            digest.update(f"{component}.{name}{tuple(parameters[name].shape)}".encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _canonical(component: str, module: nn.Module, name: str) -> str:
    nested = hasattr(module, "text_model") or not component.startswith("text_encoder")
    return name if nested else f"text_model.{name}"


def _from_folder(folder: Path, dtype: torch.dtype | None) -> Any:
    index = folder / "model_index.json"
    if not index.is_file():
        raise BaseModelError(f"{folder}: no model_index.json there; give the folder of a diffusers pipeline.")
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError, TypeError):
        raise BaseModelError(f"{index}: cannot be read as a pipeline's index; the folder is damaged.") from None
    unet = folder / "unet"
    if unet.is_dir() and not list(unet.glob("*.safetensors")):
        raise BaseModelError(
            f"{unet}: no .safetensors there; convert the weights to safetensors (pickles are not loaded)."
        )
    plain = [file for file in unet.glob("*.safetensors") if ".fp16" not in file.name]
    return _pretrained(str(folder), kind, dtype, local_files_only=True, variant=None if plain else "fp16")


def _from_hub(name: str, path: Path, dtype: torch.dtype | None) -> Any:
    near = did_you_mean(name, [*EMBEDDED, *(str(other) for other in path.parent.glob("*"))])
    if name.count("/") != 1 or path.suffix == ".safetensors" or name.startswith((".", "/")):
        raise BaseModelError(f"{name}: there is no such base, folder or checkpoint.{near}")
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        index: Any = DiffusionPipeline.load_config(name)
        kind = str(index["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:160]
        raise BaseModelError(f"'{name}' is no local folder and was not found on the hub ({reason}).{near}") from error
    return _pretrained(name, kind, dtype)


def _pretrained(ref: str, kind: str, dtype: torch.dtype | None, **options: Any) -> Any:
    import diffusers

    if kind not in PIPELINES:
        raise BaseModelError(f"{ref}: a {kind}; this version knows {' and '.join(PIPELINES)}.")
    if kind == PIPELINES[0]:
        options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    # float16 is read as it is; for bfloat16 the hash needs the exact values first
    stored = torch.float16 if dtype == torch.float16 else torch.float32
    try:
        with without_loading_bars():
            return getattr(diffusers, kind).from_pretrained(ref, torch_dtype=stored, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise BaseModelError(
            f"{ref}: the pipeline cannot be loaded ({reason}); only whole safetensors are read."
        ) from error
