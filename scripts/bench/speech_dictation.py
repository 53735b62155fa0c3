"""Medical dictation by synthetic voices: sentences with drugs and procedures, and strings of recorded digits.

Needs Debian's espeak-ng, flite, festival, festvox-kdlpc16k and festvox-kallpc16k.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile

from scripts.pretrain.speech_demo import RATE as DIGITS_RATE
from scripts.pretrain.speech_demo import recordings, strings
from scripts.pretrain.speech_text import listed
from scripts.pretrain.speech_voices import RATE, Voice, spoken

DRUGS = listed(
    "metoprolol lisinopril amlodipine atorvastatin rosuvastatin clopidogrel apixaban rivaroxaban warfarin furosemide"
    " spironolactone metformin sitagliptin empagliflozin levothyroxine omeprazole pantoprazole ondansetron amoxicillin"
    " ciprofloxacin azithromycin vancomycin meropenem ceftriaxone fluconazole acyclovir prednisolone dexamethasone"
    " methotrexate adalimumab gabapentin pregabalin levetiracetam lamotrigine sertraline escitalopram quetiapine"
    " risperidone salbutamol tiotropium"
)
PROCEDURES = listed(
    "colonoscopy bronchoscopy cholecystectomy appendectomy thoracentesis paracentesis laparoscopy arthroscopy"
    " angioplasty echocardiogram electrocardiogram tracheostomy gastrostomy hysterectomy thyroidectomy nephrectomy"
    " cystoscopy mammography spirometry endoscopy"
)
TERMS = DRUGS + PROCEDURES
DRUG_PATTERNS = (
    "start {term} {number} milligrams once daily",
    "the patient takes {term} every morning",
    "please stop {term} because of side effects",
    "increase {term} to {number} milligrams",
    "she is allergic to {term}",
    "continue {term} for {number} days",
    "his symptoms improved on {term}",
    "we changed the treatment from {other} to {term}",
)
PROCEDURE_PATTERNS = (
    "the {term} was performed without complications",
    "we recommend a {term} next week",
    "the patient refused the {term}",
    "results of the {term} are normal",
    "he is scheduled for {term} on Monday",
    "the {term} showed no abnormality",
    "after the {term} she was given {other}",
    "consent for {term} was obtained",
)
NUMBERS = listed("5 10 20 40 50 60 80")
GROUPS = {
    "american": (
        Voice("espeak", "en-us+m3", 150, 45), Voice("espeak", "en-us+f2", 170, 60), Voice("flite", "awb"),
        Voice("flite", "slt"), Voice("espeak", "en-us-nyc+m1", 160, 40),
    ),
    "british": (
        Voice("espeak", "en-gb+m2", 150, 40), Voice("espeak", "en-gb-x-rp+f3", 165, 55),
        Voice("espeak", "en-gb-scotland+m5", 150, 50), Voice("espeak", "en-gb-x-gbclan+f1", 160, 50),
        Voice("festival", "kal_diphone"),
    ),
}  # fmt: skip
"""Voices of training, by group of speakers."""
VALIDATION = (Voice("espeak", "en-029+m4", 155, 45),)
TEST = (
    Voice("flite", "rms"), Voice("festival", "ked_diphone"), Voice("espeak", "en-us+m7", 160, 50),
    Voice("espeak", "en-gb-x-gbcwmd+f5", 155, 50),
)  # fmt: skip
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
Row = tuple[str, str, str, str, str]
"""Path, text, speaker, group, split."""


def sentences(count: int, rng: np.random.Generator) -> list[str]:
    """So many different sentences, every term in as many of them as every other, give or take one."""
    found = dict[str, None]()
    while len(found) < count:
        for term in rng.permutation(TERMS):
            before = len(found)
            while len(found) == before:
                found[_sentence(str(term), rng)] = None
    return list(found)[:count]


def _sentence(term: str, rng: np.random.Generator) -> str:
    patterns = DRUG_PATTERNS if term in DRUGS else PROCEDURE_PATTERNS
    other, number = DRUGS[rng.integers(len(DRUGS))], NUMBERS[rng.integers(len(NUMBERS))]
    said = patterns[rng.integers(len(patterns))].format(term=term, other=other, number=number)
    return f"{said[0].upper()}{said[1:]}."  # as Whisper writes


def write_dictation(folder: Path, *, tested: int = 60, validated: int = 20, count: int = 200, seed: int = 0) -> Path:
    """Write the sound, and tables: test and validation have sentences and voices of their own.

    The first ``tested`` sentences, which hold every term once, are the test's (``test.csv``), each by one of its
    voices in turn. The other tables, ``dictation.csv`` and one of each group, hold speech of training and validation.
    """
    texts = sentences(count, np.random.default_rng(seed))
    parts = [("test", "test", (voice,), texts[number : tested : len(TEST)]) for number, voice in enumerate(TEST)]
    parts += [("validation", "validation", VALIDATION, texts[tested : tested + validated])]
    parts += [("train", group, voices, texts[tested + validated :]) for group, voices in GROUPS.items()]
    rows = list[Row]()
    for split, group, voices, said in parts:
        for voice in voices:
            name = f"{voice}".replace(" ", "-").replace("+", "-")
            for index, (text, clip) in enumerate(zip(said, spoken(voice, said), strict=True)):
                path = f"{split}-{name}-{index:03}.flac"
                soundfile.write(folder / path, clip, RATE)
                rows.append((path, text, str(voice), group, split))
    _write_table(folder / "test.csv", [row for row in rows if row[4] == "test"])
    _write_table(folder / "dictation.csv", [row for row in rows if row[4] != "test"])
    for group in GROUPS:
        _write_table(folder / f"{group}.csv", [row for row in rows if row[3] in (group, "validation")])
    return folder / "dictation.csv"


def write_digits(archive: Path, folder: Path, *, each: int = 10, seed: int = 0) -> Path:
    """Write strings of six recorded digits by six speakers, and ``digits.csv``."""
    rng, rows = np.random.default_rng(seed), list[Row]()
    for speaker in SPEAKERS:
        some: Iterator[tuple[np.ndarray, str]] = islice(strings(recordings(archive, speaker), 6, rng), each)
        for index, (samples, text) in enumerate(some):
            path = f"digits-{speaker}-{index:02}.flac"
            soundfile.write(folder / path, samples, DIGITS_RATE)
            rows.append((path, text, speaker, speaker, "test"))
    _write_table(folder / "digits.csv", rows)
    return folder / "digits.csv"


def _write_table(file: Path, rows: list[Row]) -> None:
    with file.open("w", newline="") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(("path", "text", "speaker", "group", "split"))
        table.writerows(rows)
