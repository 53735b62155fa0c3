from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask

from visionpeft.evaluation.detection.detections import Detections
from visionpeft.inference.merge import Piece, fused, kept_by_nms, whole_objects


def crowd(seed, count=60):
    """Boxes around a few centres, of two classes."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 200, (6, 2))[rng.integers(6, size=count)]
    corner = centres + rng.normal(0, 6, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 40, (count, 2))], axis=1)
    return Detections("p", boxes, rng.permutation(count) / count, rng.integers(0, 2, count))


def iou(first, second):
    a, b = ([*box[:2], box[2] - box[0], box[3] - box[1]] for box in (first, second))
    return float(mask.iou(np.array([a], np.float64), np.array([b], np.float64), [0])[0, 0])


@pytest.mark.parametrize("seed", range(10))
def test_suppression_is_the_loop_of_its_definition(seed):
    found = crowd(seed)
    order = sorted(range(len(found)), key=lambda i: -found.scores[i])
    kept = []
    for i in order:
        if all(found.labels[i] != found.labels[j] or iou(found.boxes[i], found.boxes[j]) <= 0.5 for j in kept):
            kept.append(i)
    got = kept_by_nms(found, 0.5)
    assert got.boxes.tolist() == found.boxes[kept].tolist()
    assert got.scores.tolist() == found.scores[kept].tolist()
    assert got.labels.tolist() == found.labels[kept].tolist()


@pytest.mark.parametrize("seed", range(10))
def test_fusion_is_the_loop_of_its_paper(seed):
    found = crowd(seed)
    clusters = []
    for i in sorted(range(len(found)), key=lambda i: -found.scores[i]):
        box, score = found.boxes[i].astype(np.float64), max(float(found.scores[i]), 1e-12)
        best, chosen = 0.5, None
        for cluster in clusters:
            value = iou(cluster["mean"], box) if cluster["label"] == found.labels[i] else 0
            if value > best:
                best, chosen = value, cluster
        if chosen is None:
            chosen = {"label": found.labels[i], "parts": []}
            clusters.append(chosen)
        chosen["parts"].append((score, box))
        weight = sum(s for s, _ in chosen["parts"])
        chosen["mean"] = sum(s * b for s, b in chosen["parts"]) / weight
        chosen["score"] = weight / len(chosen["parts"]) * min(len(chosen["parts"]), 4) / 4
    clusters.sort(key=lambda cluster: -cluster["score"])
    got = fused(found, 0.5, views=4)
    np.testing.assert_allclose(got.boxes, [cluster["mean"] for cluster in clusters], atol=1e-4)
    np.testing.assert_allclose(got.scores, [cluster["score"] for cluster in clusters], atol=1e-6)
    assert got.labels.tolist() == [cluster["label"] for cluster in clusters]


@pytest.mark.parametrize("merge", [lambda d: kept_by_nms(d, 0.5), lambda d: fused(d, 0.5, 2)])
def test_nothing_stays_nothing(merge):
    assert len(merge(Detections("p", [], [], []))) == 0


def seen(*tiles):
    """Pieces of tiles (0..64) and (48..112) side by side: rows (box, score, label) each."""
    windows = ((0, 0, 64, 64), (48, 0, 112, 64))
    columns = [tuple(zip(*rows, strict=True)) or ((), (), ()) for rows in tiles]
    return [Piece(Detections("", *map(np.array, part)), window) for part, window in zip(columns, windows, strict=True)]


def test_a_sliver_that_is_measured_badly_belongs_to_the_object_it_lies_on():
    pieces = seen([((58, 12, 64, 20), 0.6, 0)], [((58, 10, 90, 40), 0.9, 0)])
    found = whole_objects("p", pieces, (112, 64), 0.5)
    assert found.boxes.tolist() == [[58, 10, 90, 40]]
    assert found.scores.tolist() == pytest.approx([0.9])
    other = seen([((58, 12, 64, 20), 0.6, 1)], [((58, 10, 90, 40), 0.9, 0)])
    assert len(whole_objects("p", other, (112, 64), 0.5)) == 2


@pytest.mark.parametrize("order", [1, -1])
def test_an_object_takes_one_part_of_each_tile_the_one_that_agrees_most(order):
    rows = [((20, 10, 64, 44), 0.7, 0), ((30, 10, 64, 40), 0.8, 0)]
    pieces = seen(rows[::order], [((48, 10, 90, 40), 0.9, 0)])
    found = whole_objects("p", pieces, (112, 64), 0.5)
    assert sorted(found.boxes.tolist()) == [[20, 10, 64, 44], [30, 10, 90, 40]]


def test_parts_that_do_not_agree_where_both_tiles_look_stay_apart():
    pieces = seen([((20, 10, 64, 20), 0.7, 0)], [((48, 30, 90, 40), 0.9, 0)])
    assert len(whole_objects("p", pieces, (112, 64), 0.5)) == 2
