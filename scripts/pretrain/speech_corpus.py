"""Gather the speech of the embedded Whisper: ``python -m scripts.pretrain.speech_corpus --fsdd fsdd.zip``.

Recorded digits of four speakers, recorded prompts of a fifth, and what synthetic voices say, as coded spectrograms in
one file that fits in a few MB. Needs Debian's espeak-ng, flite, festival, festvox-kdlpc16k, festvox-kallpc16k,
festvox-us-slt-hts and asterisk-core-sounds-en-wav; what trains on the file needs none of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from torch import Tensor

from scripts.pretrain.speech_codec import Audio, log_mel
from scripts.pretrain.speech_demo import DEMO, MEASURED, recordings, strings
from scripts.pretrain.speech_demo import RATE as DIGITS_RATE
from scripts.pretrain.speech_store import Clip, write_corpus
from scripts.pretrain.speech_text import DAYS, DIGITS, MONTHS, ORDINALS, WORDS, digit_string, listed, number, sentence
from scripts.pretrain.speech_voices import (
    FESTIVAL,
    FLITE,
    LEFT_OUT_FLITE,
    LEFT_OUT_VARIANTS,
    Voice,
    espeak_voice,
    resampled,
    spoken,
    trimmed,
)

SPEAKERS = ("george", "jackson", "theo", "yweweler")
PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
LONGEST = 8.0
"""Seconds of a clip; a window of 10 s must hold it when it is slowed."""
_PLAIN = listed(
    "activated added calling cancelled disabled enabled extension for goodbye hello hours invalid is location "
    "lowercase minute minutes number removed second seconds sorry time transfer uppercase with your "
    "telephone-number speed-dial please-try-again one-moment-please digits/at digits/billion digits/dollars "
    "digits/hundred digits/million digits/minus digits/oh digits/pound digits/star digits/thousand digits/today "
    "digits/tomorrow digits/yesterday"
)


Sound = tuple[str, str, str, Audio]
"""Part, voice, text, sound."""


def digits_of(archive: Path) -> Iterator[Sound]:
    """The recorded digits of the four speakers."""
    for speaker in SPEAKERS:
        for (digit, _), samples in sorted(recordings(archive, speaker).items()):
            yield "digits", speaker, DIGITS[digit], resampled(samples, DIGITS_RATE)


def prompts() -> Iterator[Sound]:
    """The words of Asterisk's English prompts whose text the name of the file tells."""
    named = {name: name.split("/")[-1].replace("-", " ") for name in _PLAIN}
    named |= {f"digits/{value}": number(value) for value in (*range(21), *range(30, 100, 10))}
    named |= {f"digits/h-{index + 1}": word for index, word in enumerate(ORDINALS)}
    named |= {f"digits/day-{index}": DAYS[index - 1] for index in range(7)}
    named |= {f"digits/mon-{index}": word for index, word in enumerate(MONTHS)}
    for name, text in sorted(named.items()):
        samples, rate = soundfile.read(PROMPTS / f"{name}.wav", dtype="float32")
        yield "digits", "allison", text, trimmed(resampled(samples, rate))


def words(count: int, rng: np.random.Generator) -> Iterator[Sound]:
    """Every word alone, by ``count`` voices of espeak-ng and by those of the others."""
    voices = [Voice("flite", name) for name in FLITE] + [Voice("festival", FESTIVAL[0])]
    voices += [espeak_voice(rng) for _ in range(count)]
    for index, (voice, clips) in enumerate(_said([(voice, WORDS) for voice in voices])):
        yield from (
            ("words", f"{voice} {index}", text, clip) for text, clip in zip(WORDS, clips, strict=True) if len(clip)
        )


def sentences(count: int, share: float, rng: np.random.Generator) -> Iterator[Sound]:
    """``count`` sentences, ``share`` of them by flite and festival, the others each by another voice of espeak-ng."""
    others = [Voice("flite", name) for name in FLITE] + [Voice("festival", name) for name in FESTIVAL]
    each = int(count * share) // len(others)
    jobs = [(voice, [sentence(rng) for _ in range(each)]) for voice in others]
    jobs += [(espeak_voice(rng), [sentence(rng)]) for _ in range(count - each * len(others))]
    for voice, clips, texts in ((v, c, t) for (v, c), (_, t) in zip(_said(jobs), jobs, strict=True)):
        yield from (("sentences", str(voice), text, clip) for text, clip in zip(texts, clips, strict=True))


def measured(archive: Path, known: set[str], each: int, rng: np.random.Generator) -> Iterator[Sound]:
    """Left-out speakers' digits as strings, and new sentences by left-out voices."""
    for speaker in (MEASURED, DEMO):
        clips = {key: samples for key, samples in recordings(archive, speaker).items() if key[1] < 10}
        for samples, text in list(strings(clips, 5, rng))[:each]:
            yield "measured", speaker, text, resampled(samples, DIGITS_RATE)
    new = dict.fromkeys(text for text in (sentence(rng) for _ in range(50 * each)) if text not in known)
    texts = iter(new)
    for name in LEFT_OUT_FLITE:
        some = [next(texts) for _ in range(each)] + [digit_string(rng, 5, 5) for _ in range(each // 2)]
        for text, clip in zip(some, spoken(Voice("flite", name), some), strict=True):
            yield "measured", f"flite {name}", text, clip
    for _ in range(each):
        voice, text = espeak_voice(rng, LEFT_OUT_VARIANTS), next(texts)
        yield "measured", "espeak, left-out variants", text, spoken(voice, [text])[0]


def _said(jobs: Sequence[tuple[Voice, Sequence[str]]]) -> Iterator[tuple[Voice, list[Audio]]]:
    with ThreadPoolExecutor(4) as pool:
        yield from zip((voice for voice, _ in jobs), pool.map(lambda job: spoken(*job), jobs), strict=True)


def coded(sounds: Iterator[Sound]) -> list[tuple[Clip, Tensor]]:
    """Clips with their spectrograms, without those that are too short or too long."""
    kept = [(*about, log_mel(audio)) for *about, audio in sounds if 0.1 < len(audio) / 16_000 <= LONGEST]
    return [(Clip(part, voice, text, len(mel)), mel) for part, voice, text, mel in kept]


def main() -> None:
    """Gather and write."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pretrain.speech_corpus", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--fsdd", type=Path, required=True, help="the Free Spoken Digit Dataset")
    parser.add_argument("--work", type=Path, default=Path(".pretrain"), help="folder to write speech.npz in")
    parser.add_argument("--sentences", type=int, default=5000)
    parser.add_argument("--voices", type=int, default=16, help="of espeak-ng that say every word")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)

    def sounds() -> Iterator[Sound]:
        yield from digits_of(options.fsdd)
        yield from prompts()
        yield from words(options.voices, rng)
        said = list(sentences(options.sentences, 0.35, rng))
        yield from said
        yield from measured(options.fsdd, {text for _, _, text, _ in said}, 20, rng)

    write_corpus(coded(sounds()), options.work / "speech.npz")


if __name__ == "__main__":
    main()
