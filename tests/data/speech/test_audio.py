"""Sound of every kind against closed forms; what is no sound, in one line with its name."""

import random
import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from tests.data.speech.sets import tone, write
from visionpeft.data.speech import audio
from visionpeft.data.speech.audio import audio_seconds, header_of, read_audio, resampled, sound_digest
from visionpeft.errors import DataError, MissingExtraError

LOSSY = {"mp3": 0.06, "ogg": 0.02, "opus": 0.05}


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg", "opus"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_tone_in_every_format_is_that_tone_at_16_khz(tmp_path, kind, rate, channels):
    if (kind == "mp3" and channels > 2) or (kind == "opus" and rate == 44_100):
        pytest.skip("the format has no such thing")
    sound = tone(2.0, 440, rate)
    path = write(tmp_path / f"a.{kind}", np.repeat(sound[:, None], channels, 1), rate)
    heard = read_audio(path)
    assert heard.dtype == np.float32
    assert heard.shape == (32_000,)
    assert audio_seconds(path) == 2.0
    middle = slice(8_000, 24_000)
    np.testing.assert_allclose(heard[middle], tone(2.0, 440)[middle], atol=LOSSY.get(kind, 2e-3))


def test_channels_become_their_mean(tmp_path):
    left, right = tone(1, 300), tone(1, 500)
    heard = read_audio(write(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT"))
    np.testing.assert_allclose(heard, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_kind_of_sample_of_wav(tmp_path, subtype):
    heard = read_audio(write(tmp_path / "a.wav", subtype=subtype))
    np.testing.assert_allclose(heard, tone(), atol=0.01 if subtype == "PCM_U8" else 1e-4)


def test_a_wav_is_read_as_a_second_library_reads_it(tmp_path):
    path = write(tmp_path / "a.wav", tone(0.3, 700, 22_050), 22_050)
    rate, values = wavfile.read(path)
    assert rate == 22_050
    np.testing.assert_array_equal(read_audio(path, rate=22_050), values.astype(np.float32) / 32_768)


def test_resampling_keeps_what_both_rates_hold_and_drops_what_the_lower_cannot():
    kept, lost = tone(1, 3_000, 48_000), tone(1, 11_000, 48_000)
    heard = resampled(kept + lost, 48_000, 16_000)
    np.testing.assert_allclose(heard[2_000:-2_000], tone(1, 3_000)[2_000:-2_000], atol=3e-3)
    assert resampled(kept, 48_000, 48_000) is kept
    assert len(resampled(kept[:100], 44_100, 16_000)) == -(-100 * 16_000 // 44_100)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 15_000), st.integers(1, 16_000), st.sampled_from(["wav", "flac", "ogg", "mp3"]))
def test_a_stretch_is_that_part_of_the_whole(tmp_path_factory, start, length, kind):
    folder = tmp_path_factory.getbasetemp() / "stretches"
    path = folder / f"a.{kind}"
    if not path.exists():
        write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 16_000).astype(np.float32))
    end = min(16_000, start + length)
    part = read_audio(path, start=start / 16_000, end=end / 16_000)
    np.testing.assert_allclose(part, read_audio(path)[start:end], atol=1e-6)


def test_the_digest_is_of_the_sound_and_not_of_the_file(tmp_path):
    sound = np.rint(tone(0.4) * 32_768).astype(np.int16)
    same = {sound_digest(write(tmp_path / name, sound)) for name in ("a.wav", "b.flac", "c.wav")}
    assert len(same) == 1
    assert sound_digest(write(tmp_path / "d.wav", sound), start=0.1) not in same
    assert sound_digest(write(tmp_path / "e.wav", sound, 8_000)) not in same
    assert sound_digest(write(tmp_path / "f.wav", sound + 1)) not in same
    part = sound_digest(tmp_path / "a.wav", start=0.1, end=0.2)
    assert part == sound_digest(write(tmp_path / "g.flac", sound[1_600:3_200]))


def refused(path, match, **stretch):
    with pytest.raises(DataError, match=match) as caught:
        read_audio(path, **stretch)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_sound_is_refused_by_name(tmp_path):
    def file(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    refused(file("empty.wav", b""), r"is empty\. Replace it")
    refused(file("words.mp3", b"these are words " * 100), "is not sound: its content is text")
    refused(file("noise.flac", bytes(range(256)) * 9), "is damaged or no sound")
    refused(file("a.m4a", b"x"), r"convert it, as by ffmpeg -i a\.m4a a\.flac")
    refused(file("a.txt", b"x"), "is not named as sound")
    refused(file("a.raw", b"x" * 99), "is not named as sound")
    write(tmp_path / "voice_01.wav")
    refused(tmp_path / "voice_1.wav", r"is not there\. Did you mean 'voice_01\.wav'")
    (tmp_path / "folder.wav").mkdir()
    refused(tmp_path / "folder.wav", "is not there")


@pytest.mark.parametrize(("kind", "name", "right"), [("mp3", "a.wav", "a.mp3"), ("wav", "a.flac", "a.wav")])
def test_a_wrong_extension_is_refused_with_the_right_one(tmp_path, kind, name, right):
    write(tmp_path / f"x.{kind}").rename(tmp_path / name)
    refused(tmp_path / name, f"by its content: name it {right}")


def test_sound_without_samples_and_values_that_are_none(tmp_path):
    refused(write(tmp_path / "zero.wav", np.zeros(0, np.float32)), "it has no samples")
    for number, value in enumerate((np.nan, np.inf, -np.inf)):
        sound = tone()
        sound[7_000] = value
        refused(write(tmp_path / f"n{number}.wav", sound, subtype="FLOAT"), "are no numbers")
    refused(write(tmp_path / "loud.wav", tone() * 1e5, subtype="FLOAT"), r"up to 3e\+04: expected -1 to 1")


def test_times_that_do_not_fit(tmp_path):
    path = write(tmp_path / "a.wav")
    refused(path, r"has 1\.00 s, and 1\.20 s was named as an end", end=1.2)
    refused(path, "no sound lies between 0.5 s and 0.5 s", start=0.5, end=0.5)
    refused(path, "no sound lies between 1 s and 1 s", start=1.0)
    refused(path, "no sound lies", start=-1.0)
    refused(path, "no sound lies", end=float("inf"))
    assert len(read_audio(path, end=1.04)) == 16_000  # rounded in a table


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])  # an ogg file does not say how long it is
def test_a_file_that_is_cut_short_is_refused(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", np.random.default_rng(0).uniform(-0.3, 0.3, 64_000).astype(np.float32))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "cut short|damaged|no samples")


def test_a_wav_that_was_written_into_a_pipe_is_read(tmp_path):
    path = write(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert len(read_audio(path)) == 16_000


def test_headers_that_promise_much_cost_nothing(tmp_path):
    path = write(tmp_path / "a.flac")
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4  # 2³⁶ - 1 samples: 50 days
    path.write_bytes(content)
    assert header_of(path).frames > 2**35
    tracemalloc.start()
    refused(path, "at most 21,600 s are read at once")
    refused(path, "damaged|cut short", end=5_000.0)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(("at", "value", "match"), [(24, 1, "says 1 samples a second"), (24, 2**31 - 1, "a second")])
def test_rates_that_cannot_be(tmp_path, at, value, match):
    path = write(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    content[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(content)
    refused(path, match)


def test_more_channels_than_a_room_has(tmp_path):
    refused(write(tmp_path / "a.wav", np.zeros((100, 100), np.float32)), "has 100 channels: at most 64")


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg", "opus"])
def test_spoiled_files_give_sound_or_one_line(tmp_path, kind):
    whole = write(tmp_path / f"whole.{kind}", tone(0.2)).read_bytes()
    chance = random.Random(kind)
    for number in range(120):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            content[chance.randrange(min(len(content), chance.choice((60, 10_000))))] = chance.randrange(256)
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(content[: chance.randrange(1, len(content))] if chance.random() < 0.2 else content)
        with suppress(DataError):
            heard = read_audio(path)
            assert len(heard)
            assert np.isfinite(heard).all()


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    def absent():
        raise ImportError("no soundfile")

    monkeypatch.setattr(audio, "_library", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'visionpeft\[speech\]'"):
        read_audio(tmp_path / "a.wav")
