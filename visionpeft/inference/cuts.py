"""Telling which prompts are longer than the text encoders read."""

from __future__ import annotations

from collections.abc import Iterable

from visionpeft.models.base import Base
from visionpeft.models.prompts import cut_prompt
from visionpeft.progress import Progress


def say_cuts(base: Base, prompts: Iterable[str], progress: Progress) -> None:
    """Say, one line for each prompt over 77 tokens, where it is cut."""
    for prompt in dict.fromkeys(prompts):
        kept, cut = cut_prompt(base, prompt)
        if cut:
            progress.say(f"a prompt is over 77 tokens; the model does not read what follows ✂: {kept} ✂ {cut}")
