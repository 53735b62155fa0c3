"""Captions: one of many natural wordings of what a scene shows, naming some of its attributes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.pretrain.concepts import FILLERS, POSITIONS, STYLES, TEXTURES, article, plural
from scripts.pretrain.scenes import BESIDE, LARGE, SINGLE, SMALL, THREE, Wishes
from visionpeft.evaluation.scene import COLOURS

OPENINGS = ("a photo of ", "a picture of ", "an image of ", "")
OPENING_WEIGHTS = (50, 15, 8, 27)
SIZE_WORDS = (("small", "little", "tiny"), ("medium-sized",), ("large", "big", "huge"))
STYLE_WORDS = tuple(STYLES.values())
COLOUR_NAMES = tuple(COLOURS)
ADJECTIVES = {
    "plain": "plain",
    "gradient": "gradient",
    "striped": "striped",
    "dotted": "dotted",
    "checkered": "checkered",
}
WITH = {"striped": "with stripes", "dotted": "with dots", "checkered": "with checks", "gradient": "with a gradient"}
PLACES: dict[str, tuple[str, ...]] = {
    "center": ("in the center", "in the middle", "at the center"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
} | {
    corner: (f"at the {corner}", f"in the {corner} corner", f"at the {corner}") for corner in POSITIONS if " " in corner
}


@dataclass(frozen=True)
class Mention:
    """How often a caption names each attribute; ``exact`` is how often the thing itself, rather than its class word."""

    exact: float = 0.86
    style: float = 0.45
    size: float = 0.5
    position: float = 0.65
    colour: float = 0.8
    texture: float = 0.7
    empty: float = 0.1
    filler: float = 0.05


CLEAR = Mention(exact=0.9, style=0.8, size=0.85, position=0.9, colour=0.95, texture=0.9, empty=0.0)
"""For contrastive training: most attributes are named, so that twins can be told apart."""


class Writer:
    """Writes captions for wishes over the given concepts."""

    def __init__(self, names: Sequence[str], class_words: Sequence[str], mention: Mention, seed: int) -> None:
        self.names, self.class_words, self.mention = names, class_words, mention
        self.rng = random.Random(seed)

    def __call__(self, wishes: Wishes) -> list[str]:
        """One caption per scene."""
        columns = zip(*(getattr(wishes, f).tolist() for f in wishes.__dataclass_fields__), strict=True)
        return [self.caption(*row) for row in columns]

    def caption(
        self, concept: int, other: int, style: int, kind: int, size: int, position: int, colour: int, texture: int
    ) -> str:
        """One wording of one scene, given as indices."""
        rng, mention = self.rng, self.mention
        if rng.random() < mention.empty:
            return ""
        words = self._looks(style, size if kind == SINGLE else -1)
        if kind == SINGLE:
            thing = article(" ".join([*words, self._name(concept)])) if words else article(self._name(concept))
        elif kind < BESIDE:
            number = (
                rng.choice(("three", "three", "3")) if kind == THREE else rng.choice(("two", "two", "2", "a pair of"))
            )
            thing = " ".join([number, *words, plural(self._name(concept))])
        else:
            thing = self._pair(concept, other, kind, words)
        place = rng.choice(PLACES[POSITIONS[position]]) if self._names_place(kind, size) else ""
        return self._join(thing, place, self._background(colour, texture))

    def _names_place(self, kind: int, size: int) -> bool:
        # That a large thing is central goes without saying, mostly.
        share = self.mention.position * (0.25 if size == LARGE and self.mention.position < 1 else 1.0)
        return kind == SINGLE and self.rng.random() < share

    def _name(self, concept: int) -> str:
        return self.names[concept] if self.rng.random() < self.mention.exact else self.class_words[concept]

    def _looks(self, style: int, size: int) -> list[str]:
        words = []
        if size >= 0 and self.rng.random() < self.mention.size * (1.0 if size in (SMALL, LARGE) else 0.25):
            words.append(self.rng.choice(SIZE_WORDS[size]))
        if self.rng.random() < self.mention.style:
            words.append(self.rng.choice(STYLE_WORDS[style]))
        if self.rng.random() < self.mention.filler:
            words.append(self.rng.choice(FILLERS))
        return words

    def _pair(self, concept: int, other: int, kind: int, words: list[str]) -> str:
        one, two = (article(" ".join([*words, self._name(c)]) if words else self._name(c)) for c in (concept, other))
        if kind == BESIDE:
            relations = (
                f"{one} to the left of {two}",
                f"{two} to the right of {one}",
                f"{one} and {two}",
                f"{one} next to {two}",
            )
        else:
            relations = (f"{one} above {two}", f"{two} below {one}", f"{two} under {one}", f"{one} over {two}")
        return self.rng.choice(relations)

    def _background(self, colour: int, texture: int) -> str:
        rng, kind = self.rng, TEXTURES[texture]
        shown = COLOUR_NAMES[colour] if rng.random() < self.mention.colour else ""
        pattern = kind if rng.random() < self.mention.texture * (0.3 if kind == "plain" else 1.0) else ""
        if not shown and not pattern:
            return ""
        if not pattern and rng.random() < 0.12:
            return f"on {shown}"
        preposition = rng.choice(("on", "on", "on", "with", "against", "in front of"))
        if pattern in WITH and shown and rng.random() < 0.2:
            return f"{preposition} {article(shown)} background {WITH[pattern]}"
        words = [word for word in (pattern, shown) if word]
        if rng.random() < 0.3:
            words.reverse()
        return f"{preposition} {article(' '.join(words))} background"

    def _join(self, thing: str, place: str, background: str) -> str:
        rng = self.rng
        opening = rng.choices(OPENINGS, OPENING_WEIGHTS)[0]
        if background and not opening and rng.random() < 0.12:
            return f"{background}, {thing} {place}".strip()
        comma = rng.choice((", ", " "))
        if place and background and rng.random() < 0.25:
            return f"{opening}{thing} {background}, {place}"
        return f"{opening}{thing}{' ' if place else ''}{place}{comma if background else ''}{background}"
