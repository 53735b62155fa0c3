import pytest
from PIL import Image

from visionpeft.errors import FileFormatError, OutputError
from visionpeft.inference.png import parameters_text, recipe_of, save_png

RECIPE = {
    "prompt": "ein süßer Hund, 狗",
    "negative": "blurry",
    "seed": 7,
    "steps": 12,
    "guidance": 4.5,
    "sampler": "euler_a",
    "width": 96,
    "height": 64,
    "base": {"id": "visionpeft/emoji-sd", "hash": "0123456789abcdef", "family": "sd1"},
    "adapters": [{"name": "hund", "file": "hund.safetensors", "sha256": "fedcba9876543210", "weight": 0.8}],
    "program": "visionpeft 0.1.0",
}


def test_recipe_survives(tmp_path):
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", RECIPE)
    assert recipe_of(path) == RECIPE
    with Image.open(path) as image:
        assert image.info["parameters"] == parameters_text(RECIPE)


def test_parameters_are_what_other_programs_read():
    assert parameters_text(RECIPE).split("\n") == [
        "ein süßer Hund, 狗 <lora:hund:0.8>",
        "Negative prompt: blurry",
        (
            "Steps: 12, Sampler: Euler a, CFG scale: 4.5, Seed: 7, Size: 96x64, Model hash: 0123456789, "
            'Model: visionpeft/emoji-sd, Lora hashes: "hund: fedcba987654", Version: visionpeft 0.1.0'
        ),
    ]


def test_same_picture_same_bytes(tmp_path):
    one, two = (save_png(Image.new("RGB", (8, 8)), tmp_path / name, RECIPE) for name in ("a.png", "b.png"))
    assert one.read_bytes() == two.read_bytes()


def test_pictures_without_a_recipe(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.jpg")
    whole = save_png(Image.new("RGB", (64, 64)), tmp_path / "a.png", RECIPE).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 30])
    faults = {"plain.png": "no recipe", "plain.jpg": "not a PNG", "cut.png": "not a PNG", "none.png": "not a PNG"}
    for name, message in faults.items():
        with pytest.raises(FileFormatError, match=message):
            recipe_of(tmp_path / name)


def test_nothing_is_left_where_writing_fails(tmp_path):
    with pytest.raises(OutputError):
        save_png(Image.new("RGB", (8, 8)), tmp_path / "missing" / "a.png", RECIPE)
    assert not list(tmp_path.iterdir())
