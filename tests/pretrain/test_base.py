"""The base as it is shipped: small enough, loadable everywhere, and able to do what its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from scripts.pretrain.measure import as_bytes, psnr
from scripts.pretrain.pack import LIMIT_FILE, LIMIT_TOTAL
from scripts.pretrain.view import discriminants
from visionpeft.evaluation.encoders import load_encoder
from visionpeft.evaluation.scene import background_colour, object_position, position_word

ASSETS = Path(__file__).parents[2] / "visionpeft" / "assets"
BASE = ASSETS / "emoji-sd"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(BASE)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_weights_are_half_precision_and_within_their_limits() -> None:
    files = list(BASE.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) <= LIMIT_TOTAL
    assert max(path.stat().st_size for path in files) <= LIMIT_FILE
    for path in files:
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.parametrize(("folder", "kind"), [("text_encoder", CLIPTextModel), ("clip", CLIPVisionModelWithProjection)])
def test_towers_load_whole(folder: str, kind: type) -> None:
    model, report = kind.from_pretrained(BASE / folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32


def test_text_encoder_is_keyed_for_old_and_new_transformers() -> None:
    with safe_open(BASE / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118


def test_paints_what_the_prompt_says(pipeline: StableDiffusionPipeline) -> None:
    prompts = [
        "a photo of a lemon on the left, on a blue background",
        "a photo of a strawberry in the center, on a white background",
    ]
    noise = [torch.Generator().manual_seed(seed) for seed in range(2)]
    pictures = as_bytes(
        pipeline(prompts, num_inference_steps=8, guidance_scale=5.0, generator=noise, output_type="pt").images
    )
    assert [background_colour(picture) for picture in pictures] == ["blue", "white"]
    places = [object_position(picture) for picture in pictures]
    assert [position_word(*place) for place in places if place] == ["left", "center"]


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in ASSETS.glob("subjects/*/1.png")), ids=lambda p: p.name
)
def test_subjects_are_held_out_and_survive_the_autoencoder(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    subject, known = (
        json.loads(folder.with_suffix(".json").read_text()),
        json.loads((BASE / "concepts.json").read_text()),
    )
    assert subject["name"] in known["held_out"][subject["class_word"]]
    pictures = [
        Image.open(path).convert("RGB").resize((96, 96), Image.Resampling.LANCZOS)
        for path in sorted(folder.glob("*.png"))
    ]
    assert len(pictures) == 5
    real = torch.stack([torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1).float() / 255 for p in pictures])
    with torch.no_grad():
        made = pipeline.vae.decode(pipeline.vae.encode(real * 2 - 1).latent_dist.mode()).sample
    assert psnr((made / 2 + 0.5).clamp(0, 1), real) > 28


def test_the_view_sees_the_same_thing_on_other_grounds() -> None:
    """Five pictures each of held-out things: the nearest other picture is of the same thing; cosines say so."""
    encoder = load_encoder("embedded")
    pictures = [Image.open(path) for path in sorted(ASSETS.glob("subjects/*/*.png"))]
    vectors, subject = encoder.pictures(pictures), torch.arange(len(pictures)) // 5
    same, other = subject[:, None] == subject, ~torch.eye(len(pictures), dtype=torch.bool)
    plain, likeness = vectors @ vectors.T, encoder.things(vectors) @ encoder.things(vectors).T
    assert torch.equal(subject[likeness.masked_fill(~other, -1).argmax(1)], subject)
    assert likeness[same & other].mean() > 0.65
    assert likeness[~same].mean() < 0.15
    assert likeness[same & other].mean() > plain[same & other].mean() + 0.2


def test_discriminants_keep_what_tells_classes_apart() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(50)
    truth = torch.randn(6, 3, generator=rng, dtype=torch.float64)[labels]
    noise = 5 * torch.randn(300, 9, generator=rng, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=rng, dtype=torch.float64)).Q
    weight, mean = discriminants(torch.cat([truth + 0.05 * noise[:, :3], noise], 1) @ turn, labels, directions=3)
    signal = (weight @ turn.T)[:, :3].norm() / weight.norm()
    assert weight.shape == (3, 12)
    assert mean.shape == (12,)
    assert signal > 0.95


def test_the_demo_has_a_subject() -> None:
    first = json.loads((ASSETS / "subjects" / "subjects.json").read_text())["demo"]
    assert (ASSETS / "subjects" / f"{first}.json").is_file()
