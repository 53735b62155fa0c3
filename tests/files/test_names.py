"""Names: golden ones, and both directions over whole models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.files.support import PIPELINES, bench, weights
from visionpeft.errors import FileFormatError
from visionpeft.files.layout import where
from visionpeft.files.names import Blocks, dotted, kohya_name, original_name
from visionpeft.files.readers.rules import Model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "kohya_names.json").read_text())


def canonical_place(name, blocks):
    """Where a flat name stands, or None."""
    found = where(name, "", blocks)
    return found and found.places[0]


PAIRS = [(family, place, name) for family, table in GOLDEN.items() for place, name in table.items()]


@pytest.mark.parametrize(("family", "place", "name"), PAIRS)
def test_golden_names_both_ways(family, place, name):
    assert kohya_name(place, family, Blocks()) == name
    assert canonical_place(name, Blocks()) == place


@pytest.mark.parametrize("family", PIPELINES)
def test_every_layer_of_a_model_has_a_name_and_comes_back(family):
    blocks = Blocks.of(weights(family))
    names = {kohya_name(place, family, blocks): place for place in weights(family)}
    assert len(names) == len(weights(family))
    assert {canonical_place(name, blocks) for name in names} == set(names.values())


def test_the_readers_walk_gives_the_same_original_names_as_the_table():
    blocks = Blocks.of(weights("sdxl"))
    shapes = dict.fromkeys(weights("sdxl"), (1, 1))
    walked = Model("sdxl", shapes, None, blocks.layers, blocks.plain).original
    for place in (place for place in shapes if place.startswith("unet.")):
        assert f"lora_unet_{walked[place]}" == kohya_name(place, "sdxl", blocks)


@pytest.mark.parametrize("blocks", [Blocks(), Blocks(1, frozenset({1})), Blocks(3, frozenset({0, 2}))])
def test_the_structure_is_written_as_text_and_read_again(blocks):
    assert Blocks.read(str(blocks)) == blocks
    assert Blocks.read("nonsense") == Blocks()


@pytest.mark.parametrize(
    "name", ["lora_unet_", "lora_unet_nowhere", "lora_te_text_model_x", "lora_unet_input_blocks_3_0_x", "x"]
)
def test_strange_names_are_no_place(name):
    assert canonical_place(name, Blocks()) is None


def test_dots_go_back_by_the_longest_word():
    assert dotted("mid_block_resnets_0_time_emb_proj") == "mid_block.resnets.0.time_emb_proj"
    assert dotted("proj") == "proj"
    assert dotted("projx") is None


@pytest.mark.parametrize(
    ("place", "family"), [("model.vit.layers.0", "vit"), ("text_encoder_2.x", "sd1"), ("unet.new_block", "sdxl")]
)
def test_what_has_no_name_is_refused(place, family):
    with pytest.raises(FileFormatError):
        kohya_name(place, family, Blocks())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_original_names_of_whole_published_unets_are_those_that_checkpoints_are_read_by(family):
    from visionpeft.models import original

    script = bench()
    with torch.device("meta"):
        unet = script.build_unet(family, tiny=False).state_dict()
    blocks = Blocks(plain=frozenset({0} if family == "sd1" else ()))
    state = {}
    for name, tensor in unet.items():
        path, _, kind = name.rpartition(".")
        state[f"model.diffusion_model.{original_name(path, blocks)}.{kind}"] = tensor
    found = original.unet_state(state)
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in unet.items()}
