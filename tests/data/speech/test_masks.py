"""SpecAugment: runs of frames and of pitches, within the sound, the same on any number of processes."""

import pytest
import torch

from visionpeft.data.speech.augment import SpeechAugment
from visionpeft.data.speech.masks import masked
from visionpeft.training.rng import StepRng

CPU = torch.device("cpu")


def step_rng(count, step=0, slots=None, seed=0):
    slots = torch.arange(count) if slots is None else torch.tensor(slots)
    return StepRng(seed, step, slots, count, CPU)


def features(count=64, mels=20, frames=100, seed=0):
    return torch.randn(count, mels, frames, generator=torch.Generator().manual_seed(seed))


def runs(line):
    """(start, end) of each run of True."""
    edges = torch.diff(line.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True))


def test_one_time_mask_is_one_run_of_all_pitches_with_the_mean():
    given = features(400)
    made = masked(given, SpeechAugment(time_masks=1, time_share=0.25), step_rng(400))
    changed = made != given
    assert torch.equal(changed.any(1), changed.all(1))
    found = [runs(line) for line in changed.any(1)]
    widths = torch.tensor([sum(end - start for start, end in one) for one in found])
    assert all(len(one) <= 1 for one in found)
    assert widths.min() == 0
    assert widths.max() == 25
    assert widths.float().mean() == pytest.approx(12.5, abs=1.2)
    starts = [start for one in found for start, _ in one]
    assert min(starts) < 5
    assert max(end for one in found for _, end in one) > 95
    for before, after, where in zip(given[:20], made[:20], changed[:20], strict=True):
        if where.any():
            torch.testing.assert_close(after[where], before.mean().expand(int(where.sum())))


def test_one_mel_mask_is_one_band_over_all_frames():
    given = features(400)
    changed = masked(given, SpeechAugment(mel_masks=1, mel_share=0.2), step_rng(400)) != given
    assert torch.equal(changed.any(2), changed.all(2))
    widths = changed.any(2).sum(1)
    assert all(len(runs(line)) <= 1 for line in changed.any(2))
    assert widths.unique().tolist() == [0, 1, 2, 3, 4]


def test_several_masks_are_drawn_apart():
    given = features(200)
    changed = masked(given, SpeechAugment(time_masks=3, time_share=0.1, mel_masks=2), step_rng(200)) != given
    assert max(len(runs(line)) for line in changed.all(1)) == 3


def test_padding_is_left_alone_and_does_not_count():
    given = features(100)
    frames = torch.full((100,), 40)
    given[:, :, 40:] = -9.0
    made = masked(given, SpeechAugment(time_masks=2, time_share=0.5, mel_masks=1), step_rng(100), frames)
    assert torch.equal(made[:, :, 40:], given[:, :, 40:])
    changed = made[:, :, :40] != given[:, :, :40]
    assert changed.any(1)[:, 35:].any()
    where = changed[0].nonzero()[0] if changed[0].any() else None
    assert where is not None
    torch.testing.assert_close(made[0, where[0], where[1]], given[0, :, :40].mean())


def test_any_number_of_processes_sees_the_same():
    given, config = features(8), SpeechAugment(time_masks=2, mel_masks=2)
    whole = masked(given, config, step_rng(8))
    parts = [masked(given[slots], config, step_rng(8, slots=slots)) for slots in ([0, 1, 2, 3], [4, 5, 6, 7])]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, masked(given, config, step_rng(8, step=1)))
    assert not torch.equal(whole, masked(given, config, step_rng(8, seed=1)))


def test_nothing_set_is_nothing_done_and_types_stay():
    given = features(4)
    assert masked(given, SpeechAugment(), step_rng(4)) is given
    half = masked(given.bfloat16(), SpeechAugment(time_masks=2, mel_masks=1), step_rng(4))
    assert half.dtype == torch.bfloat16
    full = masked(given, SpeechAugment(time_masks=2, mel_masks=1), step_rng(4))
    assert torch.equal(half != given.bfloat16(), full != given)


def test_nothing_waits_for_the_device():
    """On the device "meta" there are no values: whatever asks for one raises."""

    class Meta:
        def uniform(self, stream):
            del stream
            return torch.empty(4, device="meta")

    config = SpeechAugment(time_masks=2, mel_masks=2)
    frames = torch.empty(4, dtype=torch.long, device="meta")
    assert masked(features(4).to("meta"), config, Meta(), frames).shape == (4, 20, 100)
