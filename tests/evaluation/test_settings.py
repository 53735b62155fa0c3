from __future__ import annotations

import pytest
from pydantic import ValidationError

from visionpeft.evaluation.settings import ScoreConfig, fill


def test_defaults_paint_few_pictures():
    config = ScoreConfig()
    assert len(config.prompts) * len(config.seeds) + len(config.unrelated_prompts) == 14


def test_fill_names_subject_and_class():
    assert fill("{subject}, not {class}", "sks robot", "a robot") == "sks robot, not a robot"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": ("a photo",)}, "does not name the subject"),
        ({"prompts": ("a {subjekt}",)}, "unknown placeholder '{subjekt}'"),
        ({"prompts": ("a {subject",)}, "braces"),
        ({"prompts": ()}, "at least 1"),
        ({"unrelated_prompts": ("a {class}",)}, "names the subject"),
        ({"seeds": (1, 1)}, "not all different"),
        ({"seeds": (-1,)}, "greater than or equal to 0"),
        ({"max_drift": 0.0}, "greater than 0"),
        ({"stepps": 3}, "Extra inputs"),
    ],
)
def test_bad_settings_say_what_is_wrong(change, says):
    with pytest.raises(ValidationError) as caught:
        ScoreConfig(**change)
    assert says in str(caught.value)
