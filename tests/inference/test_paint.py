import numpy as np
import pytest
import torch
from PIL import Image

from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError, BaseModelError, ConfigError, FileFormatError, OutputError
from visionpeft.inference.paint import Job, run_again, run_generate
from visionpeft.inference.png import recipe_of, save_png
from visionpeft.inference.schedule import schedule_of
from visionpeft.inference.sweep import axis_of
from visionpeft.models.manage import manage
from visionpeft.progress import SilentProgress

from .conftest import base_of


class Lines(SilentProgress):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base as a diffusers folder, and two adapters for it."""
    folder = tmp_path_factory.mktemp("files")
    base = base_of("sd1")
    base.pipeline.save_pretrained(folder / "base")
    for number, name in enumerate(("toy", "robot")):
        manager = manage(base)
        manager.add(name, LoraSpec(rank=2), seed=number)
        with torch.no_grad():
            for parameter in manager.trainable()["unet"]:
                parameter.normal_(generator=torch.Generator().manual_seed(number)).mul_(0.3)
        manager.capture(name).save(folder / f"{name}.safetensors")
        manager.remove(name)
    return folder


def job(folder, output, **more):
    settings = {"prompts": ("a photo of a robot",), "base": str(folder / "base"), "steps": 2, "batch_size": 1, **more}
    return Job(output=output, **settings)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), int)


def test_every_prompt_weight_and_seed(folder, tmp_path):
    adapters = ((folder / "toy.safetensors", (0.0, 1.0)), (folder / "robot.safetensors", (0.5,)))
    painted = run_generate(job(folder, tmp_path / "out", prompts=("a robot", "a toy"), seeds=(0, 1), adapters=adapters))
    assert len(painted.pictures) == 8
    assert len({path.read_bytes() for path in painted.pictures}) == 8
    recipe = recipe_of(painted.pictures[6])
    assert (recipe["prompt"], recipe["seed"]) == ("a toy", 0)
    assert [(entry["name"], entry["weight"]) for entry in recipe["adapters"]] == [("toy", 1.0), ("robot", 0.5)]
    sheet = pixels(painted.grid)
    for path in painted.pictures:
        assert any((sheet == pixels(path)[0, 0]).all(-1).any(axis=1))


def test_made_again_it_has_the_same_pixels(folder, tmp_path):
    adapters = ((folder / "toy.safetensors", (0.7,)), (folder / "robot.safetensors", (1.0,)))
    settings = {"adapters": adapters, "negative": "blue", "sampler": "euler_a", "width": 48, "seeds": (5,)}
    (picture,) = run_generate(job(folder, tmp_path / "one", **settings)).pictures
    again = run_again(picture, tmp_path / "two", [path for path, _ in reversed(adapters)])
    assert again.difference == 0
    assert np.array_equal(pixels(again.picture), pixels(picture))
    assert recipe_of(again.picture) == recipe_of(picture)


def test_made_again_without_its_adapter_or_base(folder, tmp_path):
    (picture,) = run_generate(job(folder, tmp_path / "one", adapters=((folder / "toy.safetensors", (1.0,)),))).pictures
    with pytest.raises(AdapterError, match=r"toy\.safetensors"):
        run_again(picture, tmp_path / "two", [folder / "robot.safetensors"])
    base_of("sd2").pipeline.save_pretrained(tmp_path / "other")
    (bare,) = run_generate(job(folder, tmp_path / "three")).pictures
    with pytest.raises(BaseModelError, match="made with another"):
        run_again(bare, tmp_path / "two", base=str(tmp_path / "other"))
    assert not (tmp_path / "two").exists()


def test_nothing_is_written_over(folder, tmp_path):
    (picture,) = run_generate(job(folder, tmp_path)).pictures
    content = picture.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        run_generate(job(folder, tmp_path, seeds=(1,)))
    assert picture.read_bytes() == content


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"short"])
def test_a_file_that_is_no_adapter_leaves_nothing(folder, tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError):
        run_generate(job(folder, tmp_path / "out", adapters=((tmp_path / "bad.safetensors", (1.0,)),)))
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base(folder, tmp_path):
    base_of("sd2").pipeline.save_pretrained(tmp_path / "other")
    adapters = ((folder / "toy.safetensors", (1.0,)),)
    with pytest.raises(AdapterError, match="family"):
        run_generate(job(folder, tmp_path / "out", base=str(tmp_path / "other"), adapters=adapters))
    assert not (tmp_path / "out").exists()


def test_long_prompts_are_shown_where_they_are_cut(folder, tmp_path):
    lines = Lines()
    run_generate(job(folder, tmp_path, prompts=("a photo of " * 60,)), progress=lines)
    assert [line for line in lines.said if "77 tokens" in line]


BLENDS = [
    {"weights": (schedule_of("0@0 -> 1@1"), 0.5)},
    {"weights": ({"unet.up_blocks": schedule_of("1@0 -> 0@1"), "*": 0.2}, 1.0)},
    {"weights": (1.0, 1.0), "compose": "switch", "switch_every": 1},
    {"weights": (1.0, 1.0), "compose": "composite"},
    {"weights": (1.0, 1.0), "masked": True},
]


@pytest.mark.parametrize("blend", BLENDS)
def test_the_recipe_of_a_blend_makes_it_again(folder, tmp_path, blend):
    """With the picture and the adapters alone: the mask is in the recipe."""
    weights, masked = blend["weights"], blend.get("masked")
    files = [folder / "toy.safetensors", folder / "robot.safetensors"]
    mask = tmp_path / "mask.png"
    Image.linear_gradient("L").resize((64, 64)).save(mask)
    settings = {name: value for name, value in blend.items() if name in ("compose", "switch_every")}
    adapters = tuple((file, (weight,)) for file, weight in zip(files, weights, strict=True))
    regions = (("toy", mask),) if masked else ()
    wanted = job(folder, tmp_path / "one", adapters=adapters, regions=regions, steps=3, **settings)
    (picture,) = run_generate(wanted).pictures
    mask.unlink()
    again = run_again(picture, tmp_path / "two", files)
    assert again.difference == 0
    assert recipe_of(again.picture) == recipe_of(picture)
    plain = run_generate(job(folder, tmp_path / "plain", adapters=tuple((f, (1.0,)) for f in files), steps=3))
    assert not np.array_equal(pixels(picture), pixels(plain.pictures[0]))


def test_a_picture_from_before_blending_is_made_again(folder, tmp_path):
    (picture,) = run_generate(job(folder, tmp_path / "one", adapters=((folder / "toy.safetensors", (1.0,)),))).pictures
    recipe = {k: v for k, v in recipe_of(picture).items() if k not in ("compose", "switch_every", "regions")}
    old = save_png(Image.open(picture), tmp_path / "old.png", recipe)
    assert run_again(old, tmp_path / "two", [folder / "toy.safetensors"]).difference == 0


@pytest.mark.parametrize("regions", [{"toy": "no base64"}, {"toy": "AAAA"}, {"toy": 3}, ["toy"], None])
def test_a_damaged_mask_in_a_recipe(folder, tmp_path, regions):
    (picture,) = run_generate(job(folder, tmp_path / "one", adapters=((folder / "toy.safetensors", (1.0,)),))).pictures
    bad = save_png(Image.open(picture), tmp_path / "bad.png", {**recipe_of(picture), "regions": regions})
    with pytest.raises(FileFormatError, match="recipe"):
        run_again(bad, tmp_path / "two", [folder / "toy.safetensors"])


def test_the_text_for_other_programs_names_the_blend(folder, tmp_path):
    adapters = ((folder / "toy.safetensors", (schedule_of("0@0 -> 1@1"),)), (folder / "robot.safetensors", (1.0,)))
    wanted = job(folder, tmp_path, adapters=adapters, compose="switch", switch_every=2)
    text = Image.open(run_generate(wanted).pictures[0]).info["parameters"]
    assert "<lora:robot:1>" in text
    assert "<lora:toy" not in text
    assert "Compose: switch every 2" in text
    assert r'Adapter weights: "{\"toy\": \"0.0@0.0 -> 1.0@1.0\"}"' in text


def test_settings_vary_along_axes(folder, tmp_path):
    axes = (axis_of("weight:toy=0,1"), axis_of("seed=3,4"), axis_of("steps=1,2"))
    adapters = ((folder / "toy.safetensors", (1.0,)),)
    painted = run_generate(job(folder, tmp_path / "out", adapters=adapters, axes=axes))
    recipes = [recipe_of(path) for path in painted.pictures]
    found = [(recipe["steps"], recipe["seed"], recipe["adapters"][0]["weight"]) for recipe in recipes]
    assert found == [(steps, seed, weight) for steps in (1, 2) for seed in (3, 4) for weight in (0, 1)]
    sheet = pixels(painted.grid)
    assert sheet.shape[0] > 4 * 160
    with pytest.raises(ConfigError, match="one seed"):
        run_generate(job(folder, tmp_path / "two", adapters=adapters, axes=axes, seeds=(0, 1)))


def test_a_wrong_block_is_said_before_anything_is_painted(folder, tmp_path):
    adapters = ((folder / "toy.safetensors", (1.0,)),)
    with pytest.raises(AdapterError, match=r"Did you mean 'unet\.up_blocks'"):
        run_generate(job(folder, tmp_path, adapters=adapters, axes=(axis_of("block=all,unet.up_block"),)))
    assert not list(tmp_path.glob("*.png"))
