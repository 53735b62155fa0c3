"""Random pictures with objects, and detections that find most of them, miss some, and see things."""

from __future__ import annotations

import numpy as np

from visionpeft.data.detection.scenes import Scene
from visionpeft.evaluation.detection.detections import Detections, evaluation_of

LABELS = ("ant", "bee", "cat")


def random_boxes(rng, count, largest=220):
    corner = rng.uniform(0, 300, (count, 2))
    side = np.exp(rng.uniform(np.log(6), np.log(largest), (count, 2)))
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def random_evaluation(seed, *, pictures=None, labels=LABELS, crowds=True):
    """Ties in scores, exact hits, doubled detections, crowds, empty pictures and classes that are absent."""
    rng = np.random.default_rng(seed)
    scenes, found = [], []
    absent = rng.integers(len(labels)) if rng.random() < 0.2 else -1
    for number in range(pictures or int(rng.integers(1, 9))):
        count = int(rng.integers(0, 9))
        boxes, kinds = random_boxes(rng, count), rng.integers(0, len(labels), count)
        boxes, kinds = boxes[kinds != absent], kinds[kinds != absent]
        crowd = (rng.random(len(boxes)) < 0.1) & crowds
        name = f"picture {number}"
        scenes.append(Scene(name, 560, 560, boxes, kinds, crowd=crowd))
        near = boxes + rng.normal(0, rng.choice([0, 2, 12]), boxes.shape).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        seen = rng.random(len(near)) < 0.8
        again = rng.random(len(near)) < 0.3
        strays = random_boxes(rng, int(rng.integers(0, 6)))
        every = np.concatenate([near[seen], near[again] + 1, strays])
        guessed = rng.integers(0, len(labels), len(strays))
        kind = np.concatenate([kinds[seen], kinds[again], guessed])
        wrong = rng.random(len(kind)) < 0.15
        kind = np.where(wrong, (kind + 1) % len(labels), kind)
        scores = rng.random(len(every)).round(int(rng.integers(1, 5)))
        found.append(Detections(name, every, scores, kind))
    return evaluation_of(labels, scenes, found)
