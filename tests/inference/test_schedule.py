import numpy as np
import pytest

from visionpeft.errors import ConfigError
from visionpeft.inference.schedule import Schedule, ever_acts, plain_weight, schedule_of, step_share, weights_at


def test_it_goes_straight_between_points_and_is_level_outside():
    schedule = schedule_of("0.0@0.2 -> 0.8@0.4->0.1@0.9")
    shares = np.linspace(0, 1, 41)
    expected = np.interp(shares, [0.2, 0.4, 0.9], [0.0, 0.8, 0.1])
    np.testing.assert_allclose([schedule.at(share) for share in shares], expected, atol=1e-12)


def test_text_and_table_say_the_same_and_the_text_is_read_again():
    schedule = schedule_of(" 0@0 -> 0.8@0.4 ")
    assert schedule == schedule_of({0.4: 0.8, 0: 0}) == schedule_of(str(schedule))


def test_a_jump_is_two_points_at_one_share():
    schedule = schedule_of("1@0 -> 1@0.5 -> 0@0.5")
    assert [schedule.at(share) for share in (0, 0.49, 0.5, 1)] == [1, 1, 0, 0]


def test_the_first_step_is_share_0_and_the_last_is_1():
    assert [step_share(step, 5) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert step_share(0, 1) == 0


@pytest.mark.parametrize("text", ["", "0.5", "x@0", "1@0 -> ", "1@2", "1@0.5 -> 0@0.2", "1@-0.1", "nan@0", "1@nan"])
def test_faults_name_the_schedule(text):
    with pytest.raises(ConfigError, match="schedule"):
        schedule_of(text)


def test_weights_of_a_moment_keep_numbers_and_tables():
    weights = {"one": 0.5, "two": {"unet": "0@0 -> 1@1", "text_encoder": 0.25}, "three": {0: 1.0, 1: 0.0}}
    expected = {"one": 0.5, "two": {"unet": 0.5, "text_encoder": 0.25}, "three": 0.5}
    assert weights_at(weights, 0.5) == expected
    assert weights_at("one", 0.5) == "one"
    assert plain_weight(weights["two"]) == {"unet": "0.0@0.0 -> 1.0@1.0", "text_encoder": 0.25}


def test_what_is_0_everywhere_never_acts():
    assert not any(map(ever_acts, (0, 0.0, "0@0 -> 0@1", {"unet": 0, "*": "0@0"})))
    assert all(map(ever_acts, (1, -0.5, "0@0 -> 1@1", {"unet": 0, "*": "0@0 -> 0.1@1"}, Schedule(((0, 2),)))))
