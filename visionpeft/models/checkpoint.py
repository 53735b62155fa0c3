"""A pipeline from a single checkpoint in the original layout, without any network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from visionpeft import safefile
from visionpeft.errors import BaseModelError
from visionpeft.models import original

VOCABULARY = "openai/clip-vit-large-patch14"
_BYTES = 512  # a CLIP vocabulary begins with every byte, within and at the end of a word
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def load_checkpoint(
    path: Path,
    *,
    tokenizer: str | Path | Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    empty: bool = False,
) -> Any:
    """Return the diffusers pipeline of a checkpoint of SD 1.x, SD 2.x or SDXL, in the file's own number types.

    Args:
        path: the `.safetensors` file.
        tokenizer: see `visionpeft.models.base.load_base`.
        prediction_type: "epsilon" or "v_prediction", where the file does not tell.
        empty: take the shapes that the file's header tells, on torch's meta device, and read no weights.

    Raises:
        BaseModelError: not such a checkpoint, tensors missing, no tokenizer, or SD 2.x without a prediction type.
        FileFormatError: not a whole safetensors file.
    """
    state, header = _outline(path) if empty else safefile.load(path)
    try:
        family = original.family_name(state)
        prediction = _prediction(family, state, header, prediction_type)
        parts = _parts(state, family, prediction)
    except BaseModelError as error:
        raise BaseModelError(f"{path}: {error}") from None
    except (KeyError, IndexError, ValueError) as error:
        raise BaseModelError(f"{path}: not a whole checkpoint: {error} is missing or misshapen.") from error
    parts |= _tokenizers(path, family, tokenizer, parts)
    return _pipeline(family, parts)


def _outline(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    header = safefile.read_header(path)
    return safefile.outline(path, header), dict(header.metadata)


def _prediction(family: str, state: original.State, header: Mapping[str, str], given: str | None) -> str:
    told = given or header.get("modelspec.prediction_type") or ("v" if "v_pred" in state else None)
    if told is None and family == "sd2":
        raise BaseModelError(
            "An SD 2.x checkpoint does not tell what it predicts: pass prediction_type='v_prediction' (768 px models)"
            " or 'epsilon' (512 px models)."
        )
    if told is not None and told not in _PREDICTIONS:
        raise BaseModelError(f"prediction_type is '{told}'; this version knows 'epsilon' and 'v_prediction'.")
    return _PREDICTIONS[told or "epsilon"]


def _parts(state: original.State, family: str, prediction: str) -> dict[str, Any]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    unet = original.unet_config(state, family, prediction)
    scheduler: dict[str, Any] = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction,
        "rescale_betas_zero_snr": "ztsnr" in state,
    }  # fmt: skip
    return {
        "unet": _filled(lambda: UNet2DConditionModel(**unet), original.unet_state(state), "UNet"),
        "vae": _filled(
            lambda: AutoencoderKL(**original.vae_config(state, family)), original.vae_state(state), "autoencoder"
        ),
        "scheduler": DDIMScheduler(**scheduler),
        **{name: _text_encoder(state, family, name) for name in original.ENCODERS[family]},
    }


def _text_encoder(state: original.State, family: str, name: str) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    open_clip = original.ENCODERS[family][name][1]
    text = original.text_state(state, family, name)
    config = CLIPTextConfig(**original.text_config(text, open_clip=open_clip))
    kind = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
    return _filled(lambda: kind(config), text, name)


def _filled(build: Any, state: Mapping[str, Tensor], what: str) -> nn.Module:
    """Build a model without values and give it the checkpoint's tensors, all of them and no others."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: nn.Module = build()
    if not hasattr(model, "text_model"):  # transformers since 5.6 has CLIPTextModel without the inner model
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() ^ state.keys()):
        fault = "misses" if name in expected else "has an unexpected"
        raise BaseModelError(f"The {what} {fault} tensor '{name}'.")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise BaseModelError(f"The {what}'s '{name}' is {tuple(state[name].shape)}, expected {tuple(shape)}.")
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    return model


def _tokenizers(path: Path, family: str, given: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for encoder in original.ENCODERS[family]:
        name = encoder.replace("text_encoder", "tokenizer")
        open_clip = original.ENCODERS[family][encoder][1]
        # OpenCLIP models were trained with texts padded by token 0, which is "!"
        found[name] = (
            given[encoder] if isinstance(given, Mapping) else _tokenizer(path, name, given, "!" if open_clip else None)
        )
        words = parts[encoder].config.vocab_size
        if len(found[name]) > words:
            raise BaseModelError(f"The tokenizer has {len(found[name])} tokens, the {encoder} of {path} only {words}.")
    return found


def _tokenizer(path: Path, name: str, given: str | Path | None, pad: str | None) -> Any:
    from transformers import CLIPTokenizer

    more: dict[str, Any] = {"pad_token": pad} if pad else {}
    for place in (path.parent, path.with_suffix("")) if given is None else (Path(given),):
        for folder in (place / name, place / "tokenizer", place):
            if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
                return CLIPTokenizer.from_pretrained(str(folder), **more)
    try:
        found = CLIPTokenizer.from_pretrained(str(given or VOCABULARY), local_files_only=given is None, **more)
    except (OSError, ValueError):
        found = ()
    if len(found) >= _BYTES:  # where there is nothing, transformers may make a tokenizer that knows nothing
        return found
    where = f"'{given}' has none" if given else f"none lies beside it, and '{VOCABULARY}' is not in the hub's cache"
    raise BaseModelError(
        f"{path}: a checkpoint holds no tokenizer, and {where}: pass tokenizer=, a folder with CLIP's vocab.json"
        f" and merges.txt, or the id of one on the hub ('{VOCABULARY}')."
    )


def _pipeline(family: str, parts: dict[str, Any]) -> Any:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    if family == "sdxl":
        return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=True, add_watermarker=False)
    unsafe: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**parts, **unsafe, requires_safety_checker=False)
