from __future__ import annotations

import itertools

import numpy as np
import pytest
import soundfile

from tests.inference.talk import FIRST, Oracle, Talk, talk
from visionpeft.data.speech.audio import RATE, read_audio
from visionpeft.inference import transcribe_windows
from visionpeft.inference.transcribe import Windows, transcribe
from visionpeft.inference.transcribe_windows import Heard, Recording, Walk, read_window, steady
from visionpeft.models.base import ASSETS


def text(ids):
    return " ".join(f"w{number}" for number in ids)


def at(seconds: float) -> int:
    return FIRST + round(seconds / 0.02)


def read(*ids: int, seconds: float = 30.0, last: bool = False):
    found = read_window(Heard(ids, FIRST, text), seconds, last=last)
    return [(round(one.start, 2), round(one.end, 2), one.text) for one in found.segments], round(found.advance, 2)


def test_segments_lie_between_timestamps():
    assert read(at(0.5), 1, 2, at(3), at(4), 3, at(9)) == ([(0.5, 3.0, "w1 w2"), (4.0, 9.0, "w3")], 30.0)


def test_an_open_segment_is_heard_again_from_its_beginning():
    assert read(at(0), 1, at(3), at(3), 2, 3) == ([(0.0, 3.0, "w1")], 3.0)


def test_an_open_segment_at_the_recordings_end_is_taken():
    assert read(at(0), 1, at(3), at(3), 2, 3, seconds=8.0, last=True) == ([(0.0, 3.0, "w1"), (3.0, 8.0, "w2 w3")], 8.0)


def test_a_segment_that_is_only_begun_is_heard_from_there():
    assert read(at(0), 1, at(3), at(3)) == ([(0.0, 3.0, "w1")], 3.0)


def test_a_single_open_segment_is_all_there_is():
    assert read(at(0), 1, 2) == ([(0.0, 30.0, "w1 w2")], 30.0)
    assert read(1, 2) == ([(0.0, 30.0, "w1 w2")], 30.0)
    assert read() == ([], 30.0)
    assert read(at(0)) == ([], 30.0)


def test_times_that_cannot_be_are_put_within_the_window_and_in_order():
    segments, advance = read(at(5), 1, at(2), at(1), 2, at(29), seconds=20.0)
    assert advance == 20.0
    assert all(0 <= start < end <= 20.02 for start, end, _ in segments)
    assert [start for start, _, _ in segments] == sorted(start for start, _, _ in segments)
    assert [words for _, _, words in segments] == ["w1", "w2"]


@pytest.mark.parametrize("way", ["moved", "silences"])
@pytest.mark.parametrize("open_end", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_no_word_is_lost_or_written_twice(way, open_end, seed):
    sound = talk(seed, seconds=[9.0, 30.0, 31.0, 75.0, 180.0, 301.5][seed])
    ears = Oracle(phrase=3 + seed, open_end=open_end)
    (segments,) = transcribe([sound], ears, Windows(by=way))
    assert " ".join(segment.text for segment in segments) == text(range(len(sound.words)))
    assert ears.longest <= 30.0
    for segment in segments:
        first, last = (int(word.removeprefix("w")) for word in (segment.text.split()[0], segment.text.split()[-1]))
        assert segment.start <= sound.words[first][0] + 0.03
        assert segment.end >= sound.words[last][1] - 0.03
    for one, after in itertools.pairwise(segments):
        assert one.end <= after.start + 0.021


def test_short_windows_lose_nothing_either():
    sound = talk(11, 60.0, pause=(0.3, 0.6))
    for way in ("moved", "silences"):
        (segments,) = transcribe([sound], Oracle(), Windows(by=way, longest=6.0))
        assert " ".join(segment.text for segment in segments) == text(range(len(sound.words)))


def test_a_model_that_never_moves_on_does_not_hold_the_window():
    class Stuck(Oracle):
        def _ids(self, clip, timestamps):
            return [at(0), 1, at(0.1), at(0.1), 2]

    (segments,) = transcribe([talk(1, 90.0)], Stuck(), Windows(by="moved"))
    assert 3 <= len(segments) <= 12


def test_windows_end_at_silence():
    sound = Talk(((0.5, 28.0), (28.3, 31.0), (31.2, 40.0)), 41.0)
    walk = Walk(sound, "silences")
    start, end = walk.take()
    assert start == 0.0
    assert 28.0 < end < 28.3


def test_silence_is_not_given_to_the_model():
    ears = Oracle()
    assert transcribe([Talk((), 100.0)], ears) == [()]
    assert ears.sizes == []


def test_a_recording_is_the_file_whatever_the_blocks(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, RATE * 7).astype(np.float32), RATE)
    whole = read_audio(tmp_path / "a.wav")
    monkeypatch.setattr(transcribe_windows, "_BLOCK", 3.0)
    recording = Recording(tmp_path / "a.wav")
    for start, end in ((0.0, 2.0), (1.5, 4.0), (4.0, 7.0), (6.5, 7.0), (0.25, 0.5)):
        assert np.array_equal(recording.part(start, end), whole[round(start * RATE) : round(end * RATE)])
    recording.forget()
    assert np.array_equal(recording.part(1.0, 2.0), whole[RATE : 2 * RATE])


def test_hums_and_noise_are_steady_and_speech_is_not():
    times, rng = np.arange(4 * RATE) / RATE, np.random.default_rng(0)
    noise = rng.standard_normal(len(times))
    hums = [np.sin(2 * np.pi * pitch * times) for pitch in (50, 60, 440)]
    for sound in (*hums, hums[0] + 0.5 * np.sin(2 * np.pi * 150 * times), hums[1] + 0.1 * noise, noise):
        assert steady(sound.astype(np.float32))
    for path in sorted((ASSETS / "speech" / "test").glob("*.flac")):
        speech = read_audio(path)
        drowned = speech + rng.standard_normal(len(speech)) * np.sqrt(np.square(speech).mean())  # as loud as itself
        assert not steady(speech)
        assert not steady(drowned.astype(np.float32))
    assert not steady(np.zeros(100, np.float32))  # too short to be told


def test_what_grows_by_more_than_three_decibels_is_not_steady():
    times = np.arange(RATE) / RATE
    hum = np.sin(2 * np.pi * 50 * times)
    assert steady((hum * np.linspace(1.0, 0.75, RATE)).astype(np.float32))
    assert not steady((hum * np.linspace(1.0, 0.65, RATE)).astype(np.float32))
