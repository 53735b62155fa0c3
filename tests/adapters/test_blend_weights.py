"""How strongly each adapter goes into a blend at each layer."""

import pytest
import torch

from tests.adapters.test_blend import made
from visionpeft.adapters.algebra import deltas
from visionpeft.adapters.blend import blend
from visionpeft.adapters.blend_weights import block_of, heads_weight, in_order, spread, weights_by_place
from visionpeft.errors import AdapterError

UNET = [
    "unet.conv_in",
    "unet.down_blocks.0.resnets.0.conv1",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "unet.down_blocks.0.resnets.1.conv1",
    "unet.down_blocks.0.downsamplers.0.conv",
    "unet.mid_block.attentions.0.proj_in",
    "unet.up_blocks.0.resnets.0.conv1",
    "unet.up_blocks.1.upsamplers.0.conv",
    "unet.conv_out",
]
SPEECH = [
    "model.model.encoder.layers.2.fc1",
    "model.model.encoder.layers.10.fc1",
    "model.model.decoder.layers.0.fc1",
    "model.proj_out",
]
SIGHT = [
    "model.vit.embeddings.patch_embeddings.projection",
    "model.vit.encoder.layer.0.attention.query",
    "model.vit.encoder.layer.11.attention.query",
    "model.classifier",
]
DETECTION = [
    "model.model.backbone.conv_encoder.model.conv1",
    "model.model.input_projection",
    "model.model.encoder.layers.0.fc1",
    "model.model.decoder.layers.0.fc1",
    "model.class_labels_classifier",
]


@pytest.mark.parametrize("places", [UNET, SPEECH, SIGHT, DETECTION], ids=["unet", "whisper", "vit", "detr"])
def test_places_stand_in_the_models_order(places):
    assert in_order(reversed(places)) == places


def test_a_block_ends_at_its_number():
    assert block_of(UNET[2]) == block_of(UNET[3]) == "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    assert block_of(UNET[2].replace("to_q", "to_out.0")) == block_of(UNET[2])
    assert block_of("model.vit.encoder.layer.3.output.dense") == "model.vit.encoder.layer.3"
    assert block_of("unet.conv_in") == "unet.conv_in"


def test_a_gradient_is_straight_between_its_numbers():
    assert [spread([0, 1, 0], depth) for depth in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert spread([0.3], 0.7) == 0.3


LAYERS = [f"text.layers.{i}.{name}" for i in range(5) for name in ("q", "k")] + [f"unet.blocks.{i}.q" for i in range(3)]


def test_gradients_go_over_blocks_and_over_each_component():
    weights = weights_by_place("a", [0, 1, 0], LAYERS, LAYERS)
    assert [weights[f"text.layers.{i}.q"] for i in range(5)] == [0, 0.5, 1, 0.5, 0]
    assert [weights[f"text.layers.{i}.k"] for i in range(5)] == [0, 0.5, 1, 0.5, 0]
    assert [weights[f"unet.blocks.{i}.q"] for i in range(3)] == [0, 1, 0]


def test_the_longest_prefix_wins_and_depth_is_that_of_all_adapters():
    table = {"*": 0.5, "text": [0, 1], "text.layers.4": 2.0, "text.layers.3.k": -1.0}
    weights = weights_by_place("a", table, LAYERS[2:], LAYERS)
    assert [weights[f"text.layers.{i}.q"] for i in range(1, 5)] == [0.25, 0.5, 0.75, 2.0]
    assert weights["text.layers.3.k"] == -1.0
    assert weights["unet.blocks.0.q"] == 0.5
    assert heads_weight("a", {"unet": 1.0, "model": [0, 1, 0.5]}, "model.classifier") == 0.5


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"unte": 1.0, "*": 1}, "nothing at 'unte'.*Did you mean 'unet'"),
        ({"unet": 1.0}, r"no weight for 'text.layers.0.q'"),
        ([0.0, float("nan")], "finite number"),
        ([], "a number or several"),
        ("1", "a number or several"),
    ],
)
def test_faults_are_named(weight, message):
    with pytest.raises(AdapterError, match=message):
        weights_by_place("a", weight, LAYERS, LAYERS)


def test_a_blend_takes_weights_by_layer():
    places = tuple(f"layers.{i}" for i in range(3))
    one, two = made(2, 1, places=places), made(3, 2, places=places)
    result = deltas(blend({"a": (one, {"*": [0, 1, 0], "unet.layers.2": 0.4}), "b": (two, [1, 0])}, "svd", energy=1.0))
    for place, (w, v) in zip(sorted(result), [(0, 1), (1, 0.5), (0.4, 0)], strict=True):
        wanted = w * deltas(one)[place] + v * deltas(two)[place]
        assert torch.allclose(result[place], wanted, atol=1e-5)
    whole = blend({"a": (one, {"*": [0, 1, 0]}), "b": (two, 1.0)})
    assert [whole.specs["unet"].rank_pattern.get(p, whole.specs["unet"].rank) for p in places] == [3, 5, 3]
