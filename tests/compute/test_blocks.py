import pytest
from torch import nn

from tests.tiny import tiny_sd1
from tests.tiny_speech import new_whisper
from tests.tiny_vision import tiny_vision
from visionpeft.compute.blocks import blocks_of, choose, recomputed, spread
from visionpeft.compute.thrift import MemoryConfig, Thrift
from visionpeft.errors import ConfigError


def kinds(model):
    return {type(block).__name__ for block in blocks_of(model).values()}


def test_blocks_are_the_finest_repeated_parts():
    unet = tiny_sd1().unet
    assert kinds(unet) == {"ResnetBlock2D", "BasicTransformerBlock"}
    assert "down_blocks.0.attentions.0.transformer_blocks.0" in blocks_of(unet)
    assert kinds(new_whisper()) == {"WhisperEncoderLayer", "WhisperDecoderLayer"}
    assert kinds(tiny_vision("vit")) == {"ViTLayer"}
    assert kinds(tiny_vision("detr")) == {"ResNetBottleNeckLayer", "DetrEncoderLayer", "DetrDecoderLayer"}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 1.0])
def test_the_share_is_one_of_bytes_and_spread_evenly(share):
    sizes = [8, 8, 64, 64, 8, 8, 64, 64, 8, 8, 8, 8] * 4
    places = spread(sizes, share)
    assert sum(sizes[place] for place in places) == pytest.approx(share * sum(sizes), abs=64)
    for quarter in range(4):
        of = [sizes[place] for place in places if place // 12 == quarter]
        assert sum(of) == pytest.approx(share * sum(sizes) / 4, abs=64)
    assert (len(places) == len(sizes)) == (share == 1.0)


def test_no_share_is_no_block_and_any_share_at_least_one():
    assert spread([1, 1], 0.0) == []
    assert spread([1, 1, 1], 1e-9) == [1]
    assert recomputed(range(4), [1] * 4, 0.0) == []
    assert len(recomputed(range(4), [1] * 4, 1e-9)) == 1


def test_narrow_blocks_are_computed_again_first_and_equal_ones_spread():
    assert sorted(recomputed(range(6), [9, 1, 5, 5, 1, 9], 0.5)) == [1, 2, 4]
    assert sorted(recomputed(range(8), [1] * 8, 0.5)) == [0, 2, 4, 6]


def test_what_cannot_be_done_is_said():
    with pytest.raises(ConfigError, match=r"train.memory.stream: a Linear has no blocks"):
        choose(nn.Linear(2, 2), Thrift(memory=MemoryConfig(stream=0.5)))
    with pytest.raises(ConfigError, match=r"gradient_checkpointing \(0.6\) and train.memory.offload \(0.8\)"):
        choose(new_whisper(), Thrift(0.6, MemoryConfig(offload=0.8)))
    both = choose(new_whisper(), Thrift(0.5, MemoryConfig(offload=0.5)))
    assert not both.offloaded & both.recomputed
    assert len(both.offloaded | both.recomputed) == 4


def test_blocks_before_the_first_that_learns_keep_nothing_and_are_left_out():
    model = new_whisper().requires_grad_(False)
    model.model.decoder.layers[0].fc1.weight.requires_grad_(True)
    paths = list(blocks_of(model))
    assert {paths[place] for place in choose(model, Thrift(1.0)).recomputed} == {
        "model.decoder.layers.0", "model.decoder.layers.1"
    }  # fmt: skip
