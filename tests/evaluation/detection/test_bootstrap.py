from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.detection.cases import LABELS, random_evaluation
from tests.evaluation.detection.reference import class_figures
from visionpeft.evaluation.detection.bootstrap import map50_interval, weighted_ap50
from visionpeft.evaluation.detection.coco import coco_figures
from visionpeft.evaluation.detection.detections import evaluation_of
from visionpeft.evaluation.detection.matching import all_matches


def copied(evaluation, counts):
    """The set in which picture i really stands ``counts[i]`` times."""
    scenes, found = [], []
    for number, count in enumerate(counts):
        for copy in range(count):
            name = f"{number} {copy}"
            scene = evaluation.scenes[number]
            scenes.append(type(scene)(name, scene.width, scene.height, scene.boxes, scene.labels, crowd=scene.crowd))
            found.append(evaluation.detections[number].named(name))
    return evaluation_of(evaluation.labels, scenes, found)


@pytest.mark.parametrize("seed", range(12))
def test_a_weight_is_what_copies_of_the_picture_would_give(seed):
    evaluation = random_evaluation(seed, pictures=6)
    counts = np.random.default_rng(seed).multinomial(6, np.full(6, 1 / 6))
    resample = copied(evaluation, counts)
    for label in range(len(LABELS)):
        (value,) = weighted_ap50(all_matches(evaluation), label, counts[None])
        wanted = class_figures(resample, label, 0.5)
        assert value == pytest.approx(np.nan if wanted is None else wanted[0], abs=1e-9, nan_ok=True)


def test_weights_of_one_give_the_figure_itself():
    evaluation = random_evaluation(5, pictures=8)
    figures = coco_figures(evaluation)
    ones = np.ones((1, 8), np.int64)
    for label, name in enumerate(LABELS):
        assert weighted_ap50(all_matches(evaluation), label, ones)[0] == pytest.approx(figures.classes[name].ap50)


def test_the_interval_encloses_the_figure_and_shrinks_with_more_pictures():
    widths = []
    for pictures in (10, 160):
        evaluation = random_evaluation(2, pictures=pictures, crowds=False)
        matches = all_matches(evaluation)
        (low, high), classes = map50_interval(matches, resamples=300, seed=0)
        assert low < coco_figures(evaluation).overall.ap50 < high
        assert map50_interval(matches, resamples=300, seed=0)[0] == (low, high)
        assert map50_interval(matches, resamples=300, seed=1)[0] != (low, high)
        assert len(classes) == 3
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_one_picture_has_no_interval():
    overall, classes = map50_interval(all_matches(random_evaluation(2, pictures=1)), resamples=50, seed=0)
    assert overall is None
    assert set(classes.values()) == {None}
