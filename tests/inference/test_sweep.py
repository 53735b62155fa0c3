from dataclasses import replace

import pytest
from PIL import Image

from visionpeft.errors import AdapterError, ConfigError
from visionpeft.inference.generate import Request
from visionpeft.inference.schedule import schedule_of
from visionpeft.inference.sweep import axis_of, varied, varied_sheet

REQUEST = Request("a robot", weights={"robot": 0.8, "toy": 0.5})


def test_x_is_fastest_and_z_slowest():
    axes = [axis_of("seed=0,1,2"), axis_of("steps=5,10"), axis_of("guidance=1,4.5")]
    found = [(request.seed, request.steps, request.guidance) for request in varied(REQUEST, axes)]
    assert found == [(seed, steps, guidance) for guidance in (1, 4.5) for steps in (5, 10) for seed in (0, 1, 2)]


@pytest.mark.parametrize(
    ("axis", "weights"),
    [
        ("weight=0", {"robot": 0.0, "toy": 0.0}),
        ("weight:toy=1", {"robot": 0.8, "toy": 1.0}),
        ("weight:toy=0@0 -> 1@1", {"robot": 0.8, "toy": schedule_of("0@0 -> 1@1")}),
        ("weight:toy:unet.up_blocks=1", {"robot": 0.8, "toy": {"*": 0.5, "unet.up_blocks": 1.0}}),
        ("block:robot=unet.mid_block", {"robot": {"*": 0.0, "unet.mid_block": 0.8}, "toy": 0.5}),
        ("block:robot=all", {"robot": 0.8, "toy": 0.5}),
        ("block:robot=none", {"robot": 0.0, "toy": 0.5}),
    ],
)
def test_weights_and_blocks(axis, weights):
    (request,) = varied(REQUEST, [axis_of(axis)])
    assert request == replace(REQUEST, weights=weights)


def test_two_axes_vary_one_adapters_parts():
    axes = [axis_of("weight:toy:unet=0,1"), axis_of("weight:toy:text_encoder=0.25")]
    assert [request.weights["toy"] for request in varied(REQUEST, axes)] == [
        {"*": 0.5, "text_encoder": 0.25, "unet": 0.0},
        {"*": 0.5, "text_encoder": 0.25, "unet": 1.0},
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_a_block_has_the_weight_that_varies_on_any_axis(order):
    axes = [axis_of("weight:toy=0.25"), axis_of("block:toy=unet.mid_block")][::order]
    (request,) = varied(REQUEST, axes)
    assert request.weights["toy"] == {"*": 0.0, "unet.mid_block": 0.25}


def test_the_sheet_has_every_picture_in_its_place():
    axes = [axis_of("seed=0,1,2"), axis_of("steps=5,10"), axis_of("compose=sum,switch")]
    colours = [(20 * number, 0, 255 - 20 * number) for number in range(12)]
    sheet = varied_sheet([Image.new("RGB", (160, 160), colour) for colour in colours], axes, "a robot")
    pixels = sheet.load()
    seen = dict.fromkeys(
        pixels[x, y] for y in range(sheet.height) for x in range(sheet.width) if pixels[x, y] in colours
    )
    assert list(seen) == colours


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed=0", "Did you mean 'seed'"),
        ("seed", "after a ="),
        ("seed=0,,1", "after a ="),
        ("seed:robot=1", "write seed="),
        ("block:robot:unet=1", "write block:ADAPTER="),
    ],
)
def test_faults_of_an_axis(text, message):
    with pytest.raises(ConfigError, match=message):
        axis_of(text)


@pytest.mark.parametrize(
    ("axis", "kind", "message"),
    [
        ("seed=x", ConfigError, "seed 'x' should be a whole number"),
        ("weight=x", ConfigError, "weight 'x' should be a number"),
        ("weight:robt=1", AdapterError, "Did you mean 'robot'"),
    ],
)
def test_faults_of_a_value(axis, kind, message):
    with pytest.raises(kind, match=message):
        varied(REQUEST, [axis_of(axis)])


def test_blocks_need_one_weight_and_weights_an_adapter():
    with pytest.raises(ConfigError, match="one weight"):
        varied(replace(REQUEST, weights={"robot": {"unet": 1.0}}), [axis_of("block=unet.mid_block")])
    with pytest.raises(ConfigError, match="no adapter"):
        varied(replace(REQUEST, weights={}), [axis_of("weight=1")])
    with pytest.raises(ConfigError, match="one to three"):
        varied(REQUEST, [axis_of("seed=0")] * 4)
