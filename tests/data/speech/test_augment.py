"""What chance does to speech, against closed forms: functions of (seed, epoch, index) alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.data.speech.sets import tone
from visionpeft.data.speech.augment import (
    SpeechAugment,
    at_speed,
    augmented,
    impulse_response,
    in_room,
    noise,
    over_noise,
)

ALL = SpeechAugment(speed=0.7, room=0.7, noise=0.7, gain=(-6, 6))


def rng(seed=0):
    return np.random.default_rng(seed)


def pitch(sound):
    """Hertz of the strongest part of the spectrum."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return np.argmax(spectrum) * 16_000 / len(sound)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 100), st.integers(0, 10**6))
def test_a_draw_is_a_function_of_seed_epoch_and_index(seed, epoch, index):
    sound = tone(0.3)
    before = sound.copy()
    once, again = (augmented(sound, ALL, at=(seed, epoch, index)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(sound, before)
    assert once.dtype == np.float32
    assert np.isfinite(once).all()


def test_every_part_of_the_draw_matters():
    sound = tone(0.3)
    at = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    config = SpeechAugment(noise=1)
    made = [augmented(sound, config, at=one).tobytes() for one in at]
    assert len(set(made)) == 4


def test_nothing_is_done_where_nothing_is_set():
    sound = tone(0.3)
    np.testing.assert_array_equal(augmented(sound, SpeechAugment(), at=(0, 0, 0)), sound)
    assert not SpeechAugment(time_masks=2).changes_sound
    assert all(SpeechAugment(**{key: 0.1}).changes_sound for key in ("speed", "room", "noise"))
    assert SpeechAugment(gain=(0, 3)).changes_sound


@pytest.mark.parametrize("key", ["speed", "room", "noise"])
def test_shares_are_kept(key):
    sound = tone(0.05)
    config = SpeechAugment(**{key: 0.3})
    changed = sum(not np.array_equal(augmented(sound, config, at=(3, 0, index)), sound) for index in range(1_000))
    assert 250 < changed < 350


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.0, 1.1, 1.25])
def test_speed_changes_length_and_pitch_by_its_factor(speed):
    sound = tone(1.0, 500)
    made = at_speed(sound, speed)
    assert len(made) == -(-16_000 * 100 // round(speed * 100))
    assert pitch(made) == pytest.approx(500 * speed, abs=1.5)
    middle = slice(2_000, 10_000)
    np.testing.assert_allclose(made[middle], tone(2.0, 500 * speed)[middle], atol=2e-3)


def test_slow_speech_stays_within_what_is_heard():
    sound = tone(29.0)
    config = SpeechAugment(speed=1, speed_range=(0.5, 0.5))
    made = augmented(sound, config, at=(0, 0, 0))
    assert 29.5 * 16_000 < len(made) <= 480_000
    assert len(augmented(tone(30.0), config, at=(0, 0, 0))) == 480_000
    assert len(augmented(tone(2.0), config, at=(0, 0, 0))) == 64_000


@settings(max_examples=30, deadline=None)
@given(st.floats(-10, 40), st.sampled_from(["white", "pink"]), st.integers(2, 9_999))
def test_the_ratio_of_speech_and_noise_is_the_one_that_is_asked_for(snr, colour, count):
    sound = tone(1.0)[1 : count + 1].astype(np.float64)
    made = over_noise(sound.astype(np.float32), noise(count, colour, rng()), snr)
    added = made - sound
    assert 10 * np.log10(np.sum(sound**2) / np.sum(added**2)) == pytest.approx(snr, abs=0.05)


def test_noise_leaves_silence_silent():
    silence = np.zeros(100, np.float32)
    np.testing.assert_array_equal(over_noise(silence, noise(100, "white", rng()), 10), silence)


def test_the_colours_of_noise():
    from scipy.signal import welch

    for colour, slope in (("white", 0.0), ("pink", -1.0)):
        hertz, power = welch(noise(1 << 18, colour, rng()), 16_000, nperseg=4_096)
        band = (hertz > 60) & (hertz < 7_000)
        fitted = np.polyfit(np.log(hertz[band]), np.log(power[band]), 1)[0]
        assert fitted == pytest.approx(slope, abs=0.05)


@pytest.mark.parametrize(("seconds", "direct"), [(0.2, 0.0), (0.5, 10.0), (1.0, -5.0)])
def test_a_room_decays_by_60_db_within_its_time(seconds, direct):
    responses = np.stack([impulse_response(seconds, direct, rng(n)) for n in range(200)])
    assert (responses[:, 0] == 1).all()
    tail = responses[:, 1:]
    np.testing.assert_allclose(10 * np.log10(1 / np.sum(tail**2, 1)), direct, atol=1e-9)
    level = 10 * np.log10(np.mean(tail**2, 0))
    slope = np.polyfit(np.arange(len(level)) / 16_000, level, 1)[0]
    assert slope * seconds == pytest.approx(-60, abs=1.0)


def test_a_room_keeps_loudness_and_length_and_a_click_alone_is_no_room():
    sound = tone(0.5)
    np.testing.assert_allclose(in_room(sound, np.array([1.0])), sound, atol=1e-6)
    made = in_room(sound, impulse_response(0.4, 0.0, rng()))
    assert len(made) == len(sound)
    assert np.sqrt(np.mean(made**2)) == pytest.approx(np.sqrt(np.mean(sound**2)), rel=1e-5)
    click = np.zeros(8_000, np.float32)
    click[100] = 1
    response = impulse_response(0.2, 3.0, rng())
    heard = in_room(click, response)[100 : 100 + len(response)]
    np.testing.assert_allclose(heard, response / np.linalg.norm(response), atol=1e-6)


def test_gain_is_in_decibels():
    sound = tone(0.1)
    made = augmented(sound, SpeechAugment(gain=(-6.0, -6.0)), at=(0, 0, 0))
    np.testing.assert_allclose(made, sound * 10 ** (-6 / 20), rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"speed_range": (1.1, 0.9)}, {"speed_range": (0.1, 1)}, {"room_seconds": (0, 1)}, {"noise_snr": (3, 1)},
        {"noise_colours": ()}, {"noise_colours": ("brown",)}, {"speed": 1.1}, {"gain": (0, float("nan"))}, {"rooms": 1},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ValidationError):
        SpeechAugment(**wrong)
