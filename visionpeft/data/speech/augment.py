"""Speed, rooms, noise and loudness for speech that is trained on: pure functions of (seed, epoch, index)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from visionpeft.data.speech.audio import RATE, Audio
from visionpeft.data.speech.settings import WINDOW, Settings

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Range = tuple[float, float]

_STREAM = 0x7370_6563
"""Sets these draws apart from the sample order's, which are seeded by (seed, epoch) too."""

_DECAY = 3 * np.log(10.0)
"""e to the minus this is -60 dB: what is left of a room's sound after its reverberation time."""


class SpeechAugment(Settings):
    """What chance does to training speech; 0 is never."""

    speed: Share = Field(default=0.0, description="Share of draws played faster or slower, and so higher or lower.")
    speed_range: Range = Field(default=(0.9, 1.1), description="Least and most speed; 1 is as it is.")
    room: Share = Field(default=0.0, description="Share of draws put into a room that was made up.")
    room_seconds: Range = Field(
        default=(0.1, 0.6), description="Least and most seconds until the room's sound has fallen by 60 dB."
    )
    room_direct: Range = Field(
        default=(0.0, 15.0), description="Least and most dB of the direct sound over the room's."
    )
    noise: Share = Field(default=0.0, description="Share of draws with noise put over them.")
    noise_snr: Range = Field(default=(5.0, 30.0), description="Least and most dB of the speech over the noise.")
    noise_colours: tuple[Literal["white", "pink"], ...] = Field(
        default=("white", "pink"), min_length=1, description="Kinds of noise: white, or pink (deep as of rooms, fans)."
    )
    gain: Range = Field(default=(0.0, 0.0), description="Least and most dB that everything gets louder.")
    time_masks: int = Field(default=0, ge=0, le=20, description="Stretches of time taken out of the features.")
    time_share: Share = Field(default=0.05, description="Most of the utterance that one of them takes.")
    mel_masks: int = Field(default=0, ge=0, le=20, description="Bands of pitch taken out of the features.")
    mel_share: Share = Field(default=0.15, description="Most of the pitches that one of them takes.")

    @field_validator("speed_range", "room_seconds", "room_direct", "noise_snr", "gain")
    @classmethod
    def _least_first(cls, value: Range) -> Range:
        if not (np.isfinite(value).all() and value[0] <= value[1]):
            raise ValueError(f"{list(value)}: expected the least and then the most")
        return value

    @field_validator("speed_range")
    @classmethod
    def _speeds(cls, value: Range) -> Range:
        if not 0.5 <= value[0] <= value[1] <= 2.0:
            raise ValueError(f"{list(value)}: speeds lie from 0.5 to 2")
        return value

    @field_validator("room_seconds")
    @classmethod
    def _rooms(cls, value: Range) -> Range:
        if not 0.02 <= value[0] <= value[1] <= 5.0:
            raise ValueError(f"{list(value)}: reverberation times lie from 0.02 to 5 seconds")
        return value

    @property
    def changes_sound(self) -> bool:
        """Whether sound itself is changed, so that features cannot be kept from epoch to epoch."""
        return bool(self.speed or self.room or self.noise or any(self.gain))


def augmented(audio: Audio, config: SpeechAugment, *, at: tuple[int, int, int], window: float = WINDOW) -> Audio:
    """Return an utterance as it is heard at its draw: float32 [samples], 16 kHz.

    A slower utterance stays within the window, so that nothing of it is lost. Its length over the length of ``audio``
    is what times within it are multiplied by.

    Args:
        audio: float32 [n], 16 kHz.
        config: what chance may do.
        at: (seed, epoch, index); all that chance depends on.
        window: seconds that the model hears at once.
    """
    rng = np.random.Generator(np.random.PCG64([*at, _STREAM]))
    chance, drawn = rng.random(3), rng.random(4)
    if chance[0] < config.speed:
        audio = at_speed(audio, max(_within(config.speed_range, drawn[0]), len(audio) / (window * RATE)))
    if chance[1] < config.room:
        seconds = _within(config.room_seconds, drawn[1])
        audio = in_room(audio, impulse_response(seconds, float(rng.uniform(*config.room_direct)), rng))
    if chance[2] < config.noise:
        colour = config.noise_colours[int(rng.integers(len(config.noise_colours)))]
        audio = over_noise(audio, noise(len(audio), colour, rng), _within(config.noise_snr, drawn[2]))
    return (audio * 10 ** (_within(config.gain, drawn[3]) / 20)).astype(np.float32)


def at_speed(audio: Audio, speed: float) -> Audio:
    """Return ``audio`` [n] played ``speed`` times as fast: [ceil(n / speed)], every pitch ``speed`` times as high.

    The speed is rounded to hundredths, upwards.
    """
    from scipy.signal import resample_poly

    hundredths = int(np.ceil(round(speed * 100, 6)))
    return audio if hundredths == 100 else resample_poly(audio, 100, hundredths).astype(np.float32)


def impulse_response(seconds: float, direct: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return what a room makes of a click: the click itself, 1, and noise that decays by 60 dB within ``seconds``.

    Args:
        seconds: reverberation time RT60, over 0.
        direct: energy of the click over that of the room's sound, in dB.
        rng: of the noise.
    """
    times = np.arange(1, max(2, round(seconds * RATE))) / RATE
    tail = rng.standard_normal(len(times)) * np.exp(-_DECAY * times / seconds)
    tail *= 10 ** (-direct / 20) / np.sqrt(np.sum(tail**2))
    return np.concatenate([[1.0], tail])


def in_room(audio: Audio, response: NDArray[np.float64]) -> Audio:
    """Return ``audio`` [n] as it sounds in a room, [n], as loud as before."""
    from scipy.signal import fftconvolve

    heard = fftconvolve(audio.astype(np.float64), response)[: len(audio)]
    return (heard * _ratio(_rms(audio), _rms(heard))).astype(np.float32)


def noise(count: int, colour: Literal["white", "pink"], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return ``count`` samples of noise; the power of pink noise falls as 1 / frequency, from 20 Hz on."""
    white = rng.standard_normal(count)
    if colour == "white" or count < 2:
        return white
    spectrum = np.fft.rfft(white)
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(hertz, 20.0)), count)


def over_noise(audio: Audio, sound: NDArray[np.float64], snr: float) -> Audio:
    """Return ``audio`` [n] and ``sound`` [n] together, ``audio`` having ``snr`` dB more power."""
    return (audio + sound * _ratio(_rms(audio), _rms(sound)) * 10 ** (-snr / 20)).astype(np.float32)


def _within(ends: Range, share: float) -> float:
    return float(ends[0] + (ends[1] - ends[0]) * share)


def _rms(sound: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0


def _ratio(one: float, other: float) -> float:
    """One / other; 0 where there is nothing to divide by."""
    return one / other if other > 0 else 0.0
