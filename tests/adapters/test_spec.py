"""Specs are closed and checked."""

import pytest

from visionpeft.adapters.spec import LoraSpec, RankSpec, read_spec
from visionpeft.errors import AdapterError


def test_specs_are_read_from_plain_values_and_back():
    spec = read_spec(
        {"method": "lora", "rank": 4, "targets": {"unet": "attention", "text_encoder": ["mlp", "attention"]}}
    )
    assert isinstance(spec, LoraSpec)
    assert read_spec(spec.model_dump()) == spec
    assert spec.alpha is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "lora", "rnak": 4}, r"rnak: .*Did you mean 'rank'\?"),
        ({"method": "lorra"}, "method.*lorra"),
        ({}, "method"),
        ({"method": "lora", "rank": 0}, "rank: .*greater than or equal to 1"),
        ({"method": "lora", "rank": 4, "alpha": 0}, "alpha: .*greater than 0"),
        ({"method": "lora", "alpha": float("inf")}, "alpha: .*finite"),
        ({"method": "lora", "dropout": 1.0}, "dropout: .*less than 1"),
        ({"method": "lora", "init": "magic"}, "init"),
        ({"method": "ia3", "rank": 4}, "rank: .*not permitted"),
        ({"method": "oft", "neumann_terms": 2}, "at least 4 terms"),
        ({"method": "lora", "rank_pattern": {"x": -1}}, "rank_pattern"),
    ],
)
def test_faults_name_the_key(values, message):
    with pytest.raises(AdapterError, match=message):
        read_spec(values)


def test_all_faults_come_at_once():
    with pytest.raises(AdapterError, match=r"rank.*alpha.*drop"):
        read_spec({"method": "lora", "rank": 0, "alpha": -1, "drop": 1})


def test_specs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        LoraSpec().rank = 3
    assert issubclass(LoraSpec, RankSpec)
