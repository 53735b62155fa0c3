"""Features equal to the extractor's own, to the bit, whether kept or not; kept by content and settings."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from tests.data.speech.sets import clips, config, tone, write
from visionpeft.data.speech.features import LogMels
from visionpeft.data.speech.readers import open_speech

EXTRACTOR = WhisperFeatureExtractor()


def own(audio):
    return torch.from_numpy(EXTRACTOR(audio, sampling_rate=16_000, return_tensors="np")["input_features"][0])


@pytest.fixture
def utterances(tmp_path):
    return open_speech(config(clips(tmp_path / "clips", 3)))


@pytest.mark.parametrize("disk", [False, True])
def test_kept_features_are_the_extractors_to_the_bit(tmp_path, utterances, disk):
    folder = tmp_path / "kept" if disk else None
    first = LogMels(EXTRACTOR, folder)
    for again in (first, first, LogMels(EXTRACTOR, folder) if disk else first):
        for index in range(3):
            assert torch.equal(again.utterance(utterances, index), own(utterances.audio(index)))
    assert first.computed == 3
    assert again.computed == (0 if disk else 3)
    assert torch.equal(first.of(utterances.audio(0)), own(utterances.audio(0)))


@pytest.mark.parametrize(
    "sound",
    [tone(0.1), tone(29.99), tone(30.0), np.zeros(8_000, np.float32), tone(0.3, loud=1e-6), np.ones(1, np.float32)],
    ids=["short", "nearly all", "all", "silence", "faint", "one sample"],
)
def test_padding_is_given_back_whatever_the_sound(tmp_path, sound):
    from visionpeft.data.speech.features import _packed, _whole

    features = own(sound)
    packed = _packed(features)
    assert torch.equal(_whole(packed), features)
    assert packed["heard"].shape[1] <= len(sound) / 160 + 3


def test_what_is_kept_takes_the_room_of_the_sound_and_not_of_thirty_seconds(tmp_path, utterances):
    LogMels(EXTRACTOR, tmp_path / "kept").utterance(utterances, 0)
    (file,) = (tmp_path / "kept").iterdir()
    assert file.stat().st_size < 80 * 4 * 60  # half a second of 30


def test_other_settings_or_another_sound_are_computed_anew(tmp_path, utterances):
    kept = tmp_path / "kept"
    LogMels(EXTRACTOR, kept).utterance(utterances, 0)
    more = LogMels(WhisperFeatureExtractor(feature_size=128), kept)
    assert more.utterance(utterances, 0).shape == (128, 3_000)
    assert more.computed == 1
    write(tmp_path / "clips" / "0.wav", tone(0.5, 999))
    changed = open_speech(config(tmp_path / "clips" / "clips.csv"))
    new = LogMels(EXTRACTOR, kept)
    assert torch.equal(new.utterance(changed, 0), own(changed.audio(0)))
    assert new.computed == 1


def test_the_same_sound_in_another_file_is_not_computed_again(tmp_path):
    sound = np.rint(tone(0.5) * 32_768).astype(np.int16)
    for name in ("a.wav", "b.flac"):
        write(tmp_path / name, sound)
    (tmp_path / "t.csv").write_text("path,text\na.wav,one\nb.flac,two\n")
    found, mels = open_speech(config(tmp_path / "t.csv")), LogMels(EXTRACTOR)
    assert torch.equal(mels.utterance(found, 0), mels.utterance(found, 1))
    assert mels.computed == 1


def test_memory_has_a_bound(utterances):
    mels = LogMels(EXTRACTOR, room=0)
    for _ in range(2):
        mels.utterance(utterances, 0)
    assert mels.computed == 2


def test_frames_of_sound():
    mels = LogMels(EXTRACTOR)
    assert [mels.frames(samples) for samples in (1, 160, 161, 16_000, 480_000)] == [1, 1, 2, 100, 3_000]
