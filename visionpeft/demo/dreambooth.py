"""The demo: personalize the embedded model to a subject it has never seen, from the five pictures in the package."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from visionpeft.delivery import RunResult

STEPS, SHORT_STEPS, LEARNING_RATE = 300, 4, 5e-4

ALONE_RATE = 2e-4
"""Of the UNet without class pictures: nothing holds the rest in place then, so it has to move less."""

WORD = "<sks>"
"""A new word, trained: the subject comes by what the word learns, so the rest of the model has to change less."""

WORD_RATE = 5e-3
"""Learning rate of the word: an embedding moves farther than an adapter's weights."""

PRIOR_WEIGHT = 4.0
"""The base as its own teacher costs nothing until something changes, and little at first: it takes some weight."""

PLACES = (
    "on a blue background",
    "on a striped yellow background",
    "at the top left, on a white background",
    "on a dotted green background",
    "on a red background",
)
"""Where the subject is put, before and after."""

OTHER_THINGS = (
    "a photo of a dog on a gray background",
    "a photo of a banana",
    "a photo of a hat on an orange background",
    "a photo of a bicycle on a striped green background",
    "a photo of a small train at the bottom",
    "a photo of two strawberries on a purple background",
    "a photo of a violin at the top right, on a blue background",
    "a photo of a snowman on a dotted red background",
    "a photo of a sofa on a white background",
    "a photo of a butterfly",
    "a photo of a coin on a yellow background",
    "a photo of a whale at the left",
)
"""What the prior keeps as it was, beside the class."""


def demo(output: Path, *, short: bool = False, progress: Progress = SILENT) -> RunResult | None:
    """Learn the demo's subject and write pictures, adapter, exports and report below ``output``.

    Args:
        output: the run's folder; it must not exist yet.
        short: a few steps and pictures only, to see that everything works.
        progress: where phases are shown.

    Raises:
        VisionPeftError: the folder exists or cannot be written.
    """
    from visionpeft.config import config_from
    from visionpeft.run import train

    with as_file(files("visionpeft") / "assets" / "subjects") as subjects:
        subject = first_subject(subjects)
        kind = json.loads(subject.with_suffix(".json").read_text())["class_word"]
        config = config_from(demo_settings(subject, output, kind, short=short), name="the demo")
        return train(config, progress=progress)


def first_subject(subjects: Path) -> Path:
    """The folder of the demo's subject: its five pictures; what it is stands beside, in a JSON file of its name."""
    return subjects / json.loads((subjects / "subjects.json").read_text())["demo"]


def demo_settings(subject: Path, output: Path, kind: str, *, short: bool = False, prior: bool = True) -> dict[str, Any]:
    """Return settings to learn the subject whose pictures are in a folder.

    Args:
        subject: the folder.
        output: of the run.
        kind: the class word: "bird".
        short: a few steps and pictures only.
        prior: whether class pictures keep what the class word meant before.
    """
    steps = SHORT_STEPS if short else STEPS
    words = f"{WORD} {kind}"
    return {
        "task": "dreambooth",
        "base": "visionpeft/emoji-sd",
        "data": {
            "instance": {
                "images": str(subject),
                "prompt": f"a photo of {words}",
                "word": WORD,
                "subject_token": "trained",
            },
            "prior": prior_settings(kind, short=short) if prior else None,
            "min_snr_gamma": 5,
        },
        "adapter": {"method": "lora", "rank": 16, "targets": {"unet": "attention"}},
        "train": {
            "steps": steps,
            "batch_size": 4,
            "learning_rate": {"unet": LEARNING_RATE if prior else ALONE_RATE, "text_encoder": WORD_RATE},
            "schedule": "cosine",
            "warmup": steps // 50,
            "ema": 0.97,
            "checkpoint_every": steps // 2,
        },
        "preview": {
            "every": steps,
            "prompts": [f"a photo of {words} {place}" for place in PLACES],
            "seeds": [0],
            "steps": 4 if short else 30,
        },
        "score": {"every": steps // 4, "steps": 2 if short else 12},
        "output": str(output),
    }


def prior_settings(kind: str, *, short: bool = False) -> dict[str, Any]:
    """Return settings of class pictures for a class word: two prompts of the class, the rest of other things."""
    one = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    prompts = [f"a photo of {one}", f"a photo of {one} on a white background", *OTHER_THINGS]
    return {
        "prompt": prompts,
        "count": (1 if short else 3) * len(prompts),
        "steps": 4 if short else 10,
        "guidance": 1.0,
        "weight": PRIOR_WEIGHT,
    }
