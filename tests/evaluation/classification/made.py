"""Predictions made up from a seed, of every kind of labels."""

from __future__ import annotations

import numpy as np

from visionpeft.evaluation.classification.predictions import LabelKind, Predictions

KINDS: tuple[LabelKind, ...] = ("binary", "multiclass", "multilabel", "ordinal")


def made(
    kind: LabelKind, count: int = 60, classes: int = 4, seed: int = 0, *, signal: float = 1.0, tied: bool = False
) -> Predictions:
    """Random predictions in which every class has examples and counterexamples; with ``tied``, many scores equal."""
    rng = np.random.default_rng(seed)
    classes = 2 if kind == "binary" else classes
    every = np.concatenate([np.arange(classes), rng.integers(classes, size=count - classes)])
    targets = rng.permutation(every)
    truth = np.eye(classes, dtype=int)[targets]
    if kind == "multilabel":
        truth |= (rng.random(truth.shape) < 0.3).astype(int)
        truth[0] = 0
    logits = rng.normal(size=(count, classes)) * 1.5 + signal * truth
    if tied:
        logits = logits.round()
    return Predictions(
        names=tuple(f"{row}.png" for row in range(count)),
        logits=logits,
        targets=truth if kind == "multilabel" else targets,
        labels=tuple("ABCDEFGHIJ"[:classes]),
        kind=kind,
        columns={
            "patient": tuple(f"p{row // 3}" for row in range(count)),
            "site": tuple("xyz"[row % 3] for row in range(count)),
        },
    )
