"""Scenes show what their wishes say, captions name it, and nothing held out leaks into training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.pretrain.artwork import SPRITE, Sprites
from scripts.pretrain.captions import CLEAR, COLOUR_NAMES, Mention, Writer
from scripts.pretrain.concepts import HELD_OUT, POSITIONS, STYLES, TRAINED, article, names, plural, table
from scripts.pretrain.scenes import CENTER, LARGE, SINGLE, TWINS, Composer, Wisher, lay_out, reserved
from visionpeft.evaluation.scene import background_colour, object_position, position_word

BASE = Path(__file__).parents[2] / "visionpeft" / "assets" / "emoji-sd"


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    """Discs and squares of many hues instead of artwork, two of five concepts held out."""
    y, x = np.mgrid[:SPRITE, :SPRITE] / SPRITE - 0.5
    shapes = [
        np.hypot(x, y) < 0.5,
        abs(x) + abs(y) < 0.5,
        (abs(x) < 0.5) & (abs(y) < 0.4),
        np.hypot(x, y) < 0.45,
        abs(x) < 0.3,
    ]
    hues = [(20, 20, 200), (250, 250, 20), (20, 200, 60), (200, 30, 30), (230, 230, 240)]
    rgba = np.zeros((5, len(STYLES), SPRITE, SPRITE, 4), np.uint8)
    for index, (shape, hue) in enumerate(zip(shapes, hues, strict=True)):
        rgba[index, ..., :3], rgba[index, ..., 3] = hue, 255 * shape
    return Sprites(["apple", "banana", "fox", "owl", "robot"], ["fruit", "fruit", "animal", "bird", "toy"], 3, rgba)


def test_pictures_show_the_wished_colour_and_place(sprites: Sprites) -> None:
    rng = np.random.default_rng(0)
    wishes = Wisher(sprites).draw(300, rng, single=1.0)
    pictures = (
        (Composer(sprites, torch.device("cpu"))(lay_out(wishes, rng)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    )
    colours = [background_colour(p) == COLOUR_NAMES[c] for p, c in zip(pictures, wishes.colour, strict=True)]
    places = [object_position(p) for p in pictures]
    right = [
        place is not None and position_word(*place) == POSITIONS[p]
        for place, p in zip(places, wishes.position, strict=True)
    ]
    assert np.mean(colours) > 0.99
    assert np.mean(right) > 0.97


def test_training_never_draws_what_is_held_out_or_reserved(sprites: Sprites) -> None:
    rng = np.random.default_rng(1)
    wishes = Wisher(sprites).draw(3000, rng)
    assert wishes.concept.max() < sprites.trained
    assert wishes.other.max() < sprites.trained
    assert reserved(wishes.concept, wishes.position, wishes.colour).mean() < 0.002
    test = Wisher(sprites).draw(500, rng, single=1.0, test=True)
    assert len(test) > 0
    assert reserved(test.concept, test.position, test.colour).all()


def test_twins_differ_in_what_a_caption_can_tell(sprites: Sprites) -> None:
    rng = np.random.default_rng(2)
    wisher = Wisher(sprites)
    wishes = wisher.draw(1000, rng)
    twins = wisher.twins(wishes, rng)
    changed = np.stack([getattr(wishes, name) != getattr(twins, name) for name in TWINS])
    assert changed.any(0).mean() > 0.8
    assert all(row.any() for row in changed)
    assert np.all(twins.position[(twins.size == LARGE) | (twins.kind != SINGLE)] == CENTER)


def test_captions_name_the_thing_and_only_known_attributes(sprites: Sprites) -> None:
    wishes = Wisher(sprites).draw(400, np.random.default_rng(3), single=1.0)
    captions = Writer(sprites.names, sprites.class_words, CLEAR, 0)(wishes)
    for caption, concept, colour in zip(captions, wishes.concept, wishes.colour, strict=True):
        assert sprites.names[concept] in caption or sprites.class_words[concept] in caption
        if "background" in caption and any(f" {name} " in caption.replace(",", " ") for name in COLOUR_NAMES):
            assert COLOUR_NAMES[colour] in caption
    plain = Writer(sprites.names, sprites.class_words, Mention(empty=1.0), 0)(wishes)
    assert set(plain) == {""}


def test_the_same_seed_gives_the_same_scenes_and_captions(sprites: Sprites) -> None:
    def made() -> tuple[torch.Tensor, list[str]]:
        rng = np.random.default_rng(4)
        wishes = Wisher(sprites).draw(8, rng)
        captions = Writer(sprites.names, sprites.class_words, Mention(), 5)(wishes)
        return Composer(sprites, torch.device("cpu"))(lay_out(wishes, rng)), captions

    (one, first), (two, second) = made(), made()
    assert torch.equal(one, two)
    assert first == second


def test_words_for_one_and_many() -> None:
    assert [article(n) for n in ("owl", "cat", "jeans", "uncle")] == ["an owl", "a cat", "jeans", "an uncle"]
    assert [plural(n) for n in ("cat", "fox", "mouse", "candy", "grapes", "toy")] == [
        "cats",
        "foxes",
        "mice",
        "candies",
        "grapes",
        "toys",
    ]


def test_held_out_concepts_are_apart_and_have_a_known_class_word() -> None:
    trained, held = set(names(TRAINED)), set(names(HELD_OUT))
    assert len(trained) >= 200
    assert len(held) >= 30
    assert not trained & held
    assert {label for _, _, label in table(TRAINED)}.isdisjoint(label for _, _, label in table(HELD_OUT))
    assert set(HELD_OUT) <= set(TRAINED)
    known = json.loads((BASE / "concepts.json").read_text())
    assert set(known["concepts"]) == trained
    assert {n for row in known["held_out"].values() for n in row} == held
