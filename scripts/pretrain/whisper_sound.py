"""Windows as other speakers, rooms and microphones would give them, and what Whisper makes of them: on the device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.pretrain.speech_codec import MELS

ROOM = 24
"""Frames that a room's echo lasts."""
_LINEAR, _STEP = 1000.0, 200.0 / 3
_LOG = math.log(6.4) / 27
_TOP = _LINEAR / _STEP + math.log(8000 / _LINEAR) / _LOG
"""Slaney's mel scale: linear up to 1 kHz, logarithmic above; 8 kHz is the top."""


def to_mel(hertz: Tensor) -> Tensor:
    """Hertz on Slaney's mel scale."""
    above = _LINEAR / _STEP + (hertz.clamp(min=_LINEAR) / _LINEAR).log() / _LOG
    return torch.where(hertz < _LINEAR, hertz / _STEP, above)


def to_hertz(mel: Tensor) -> Tensor:
    """Slaney's mel scale in Hertz."""
    knee = _LINEAR / _STEP
    return torch.where(mel < knee, mel * _STEP, _LINEAR * ((mel - knee).clamp(min=0) * _LOG).exp())


def disturbed(power: Tensor) -> Tensor:
    """Windows with other throats, echoes, filters, noise and loudness: log10 of power [batch, frames, MELS]."""
    power = _echoing(_with_other_throats(power))
    power = _filtered(power)
    return _noisy(power) + _uniform(power, -2.5, 1.8)


def features(power: Tensor) -> Tensor:
    """Whisper's features of log10 of power [batch, frames, MELS]: [batch, MELS, frames]."""
    power = power.clamp(min=-10)
    loudest = power.amax((1, 2), keepdim=True)
    return (torch.maximum(power, loudest - 8) + 4).transpose(1, 2) / 4


def masked(heard: Tensor) -> Tensor:
    """SpecAugment: two stretches of time and two bands of each window's features become their mean."""
    middle = heard.mean((1, 2), keepdim=True)
    for axis, widest in ((2, 35), (2, 35), (1, 10), (1, 10)):
        size = heard.shape[axis]
        width = torch.rand(len(heard), 1, 1, device=heard.device) * widest
        begin = torch.rand(len(heard), 1, 1, device=heard.device) * (size - width)
        place = torch.arange(size, device=heard.device)[None, :, None]
        hidden = (place >= begin) & (place < begin + width)
        heard = torch.where(hidden if axis == 1 else hidden.transpose(1, 2), middle, heard)
    return heard


def _uniform(power: Tensor, low: float, high: float) -> Tensor:
    return torch.empty(len(power), 1, 1, device=power.device).uniform_(low, high)


def _chance(power: Tensor, share: float) -> Tensor:
    return torch.rand(len(power), 1, 1, device=power.device) < share


def _bands(power: Tensor) -> Tensor:
    """The middle of each band on the mel scale, [1, 1, MELS]."""
    return torch.linspace(0, _TOP, MELS + 2, device=power.device)[None, None, 1:-1]


def _with_other_throats(power: Tensor) -> Tensor:
    """Every frequency times a factor, as of a shorter or longer vocal tract."""
    factor = torch.where(_chance(power, 0.7), _uniform(power, 0.86, 1.18), 1.0)
    place = to_mel(to_hertz(_bands(power)) * factor) / (_TOP / (MELS + 1)) - 1
    place = place.clamp(0, MELS - 1.001)
    low, share = place.long(), place - place.floor()
    below = power.gather(2, low.expand_as(power))
    return torch.lerp(below, power.gather(2, (low + 1).expand_as(power)), share.expand_as(power))


def _echoing(power: Tensor) -> Tensor:
    """Sound that dies away: each frame adds to those after it."""
    decay, wet = _uniform(power, 2.0, 9.0), 10 ** _uniform(power, -2.0, -0.5)
    time = torch.arange(ROOM, device=power.device)[None, None]
    answer = torch.where(time == 0, 1.0, wet * (-time / decay).exp() * _chance(power, 0.4))
    loud = (10**power).permute(2, 0, 1)
    echo = F.conv1d(F.pad(loud, (ROOM - 1, 0)), answer.flip(2), groups=len(power))
    return echo.permute(1, 2, 0).clamp(min=1e-12).log10()


def _filtered(power: Tensor) -> Tensor:
    """A microphone's smooth response; half of the windows lose what is above about 4 kHz, some what is below 300 Hz."""
    place = torch.arange(MELS, device=power.device) / MELS
    waves = torch.cos(math.pi * torch.arange(1, 5, device=power.device)[:, None] * place)
    strength = 0.35 * torch.randn(len(power), 1, 4, device=power.device) / torch.arange(1, 5, device=power.device)
    power = power + strength @ waves
    hertz = to_hertz(_bands(power))
    top = torch.where(_chance(power, 0.55), _uniform(power, 3300, 4100), _uniform(power, 5000, 9000))
    bottom = torch.where(_chance(power, 0.2), _uniform(power, 100, 350), 0.0)
    return torch.where((hertz > top) | (hertz < bottom), power - 5, power)


def _noisy(power: Tensor) -> Tensor:
    """Noise of any colour 20 to 65 dB below the loudest spot, and in some windows another one's speech, softly."""
    place = torch.arange(MELS, device=power.device) / MELS - 0.3
    level = _uniform(power, -6.5, -2.2) + _uniform(power, -2.5, 0.5) * place
    noise = level + 0.25 * torch.randn_like(power)
    other = power.roll(1, 0) + torch.where(_chance(power, 0.15), _uniform(power, -2.8, -1.6), -9.0)
    return (10**power + 10**noise + 10**other).log10()
