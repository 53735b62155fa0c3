from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.data.detection.sets import voc
from tests.evaluation.detection.cases import LABELS, random_evaluation
from visionpeft.data.detection.readers import open_scenes
from visionpeft.data.detection.scenes import Scene
from visionpeft.data.detection.settings import ScenesConfig, ScenesSplit
from visionpeft.data.detection.splits import split_scenes
from visionpeft.errors import DataError
from visionpeft.evaluation.detection.about import DetectionAbout, data_facts
from visionpeft.evaluation.detection.coco import coco_figures
from visionpeft.evaluation.detection.curves import Rule, operating_at
from visionpeft.evaluation.detection.detections import Detections, evaluation_of
from visionpeft.evaluation.detection.figures import DetectionFigures, DetectionReportConfig, detection_figures
from visionpeft.evaluation.detection.matching import all_matches
from visionpeft.evaluation.detection.report import render_detection, spread, write_detection_report
from visionpeft.evaluation.detection.sheets import cases

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
TEST, VALIDATION = random_evaluation(5, pictures=12), random_evaluation(4, pictures=10)
FEW = DetectionReportConfig(resamples=100)


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def photograph(index):
    return Image.new("RGB", (560, 560), (90 + index, 120, 150))


def about(text="blood cells"):
    return DetectionAbout(
        name=text,
        program="visionpeft 0.2.0",
        base={"id": text},
        method="lora",
        adapter={"targets": text},
        trainable_parameters=30,
        total_parameters=1000,
        adapter_bytes=1_400_000,
        seconds={text: 75.0},
        pictures={"train": 5, "test": 12},
        counts={"train": dict.fromkeys(LABELS, 7777)},
        leaks=(text,),
        faults=(text,),
        machine={"device": text},
        versions={"torch": "2.13.0"},
        warnings=(text,),
        settings=text,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    path = write_detection_report(
        folder, test=TEST, validation=VALIDATION, pictures=photograph, about=about(), config=FEW
    )
    assert path == folder / "report.html"
    return folder


def test_metrics_hold_what_was_measured(run):
    metrics = json.loads((run / "metrics.json").read_text())
    figures = DetectionFigures.model_validate(metrics["figures"])
    assert metrics["name"] == "blood cells"
    assert figures.coco == coco_figures(TEST)
    low, high = figures.map50_interval
    assert low < figures.coco.overall.ap50 < high
    matches = all_matches(TEST)
    assert figures.operating == operating_at(matches, figures.threshold)
    assert figures.by_class["bee"] == operating_at(matches, figures.threshold, 1)
    assert figures.validation == operating_at(all_matches(VALIDATION), figures.threshold)
    assert sum(map(sum, figures.confusion[:-1])) == sum(int((~s.crowd).sum()) for s in TEST.scenes)


def test_the_page_shows_the_figures(run):
    page = Page((run / "report.html").read_text())
    figures = DetectionFigures.model_validate(json.loads((run / "metrics.json").read_text())["figures"])
    assert not page.open
    scores, at = figures.coco.overall, figures.operating
    for value in (scores.ap, scores.ap50, scores.ap_small, scores.ar10, at.recall, at.precision, figures.threshold,
                  *figures.map50_interval, figures.validation.f1, figures.coco.classes["cat"].ap75):  # fmt: skip
        assert f"{value:.3f}" in page.text
    for words in ("on the 10 validation pictures for the largest F1", "3 %", "1.4 MB", "1 min 15 s", "7,777", "2.13.0",
                  f"{at.alarms} of {at.hits + at.alarms} detections", "nothing (false alarm)"):  # fmt: skip
        assert words in page.text
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert charts == ["Precision over recall", "Threshold"]
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 1 + 30
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)


def test_nothing_comes_from_the_network_and_nothing_runs(run):
    html = (run / "report.html").read_text()
    tags = {tag for tag, _ in Page(html).tags}
    assert not {"script", "link", "iframe", "object", "form"} & tags
    assert "http" not in re.sub(r"data:image/[^\"]*|http-equiv", "", html)
    assert "default-src 'none'" in html


def test_hostile_names_are_inert():
    labels = (HOSTILE, "bee", "cat")
    scenes = [Scene(f"{HOSTILE}{s.name}", 560, 560, s.boxes, s.labels, crowd=s.crowd) for s in TEST.scenes]
    found = [d.named(scene.name) for d, scene in zip(TEST.detections, scenes, strict=True)]
    test = evaluation_of(labels, scenes, found)
    html = render_detection(detection_figures(test, None, FEW), about(HOSTILE), test, photograph)
    page = Page(html)
    assert html.count("<script") == 0
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count("<script>alert('x')</script>") >= 10
    assert not page.open


def test_the_threshold_is_chosen_on_validation_and_never_on_test():
    chosen = detection_figures(TEST, VALIDATION, FEW).threshold
    worse = evaluation_of(
        LABELS, TEST.scenes, [Detections(d.name, d.boxes, d.scores * 0.5, d.labels) for d in TEST.detections]
    )
    assert detection_figures(worse, VALIDATION, FEW).threshold == chosen
    assert detection_figures(TEST, worse, FEW).threshold != chosen


def test_a_threshold_that_could_not_be_chosen_is_said():
    alone = detection_figures(TEST, None, FEW)
    assert (alone.threshold, alone.validation) == (0.5, None)
    assert "no validation pictures" in alone.notes[0]
    rule = DetectionReportConfig(resamples=0, rule=Rule(by="recall", least=1.0))
    missed = detection_figures(TEST, VALIDATION, rule)
    assert missed.threshold == 0.5
    assert "No threshold gives a recall of at least 1" in missed.notes[0]
    assert missed.map50_interval is None
    given = detection_figures(TEST, VALIDATION, DetectionReportConfig(resamples=0, threshold=0.31))
    assert (given.threshold, given.threshold_from, given.notes) == (0.31, "given by the settings", ())


def test_a_detector_that_finds_nothing_has_a_page_too():
    scene = Scene("a", 560, 560, [[0, 0, 50, 50]], [0])
    nothing = evaluation_of(LABELS, [scene], [Detections("a", [], [], [])])
    figures = detection_figures(nothing, nothing, FEW)
    assert "No test picture holds bee, cat" in figures.notes[-1]
    page = Page(render_detection(figures, DetectionAbout(name="n"), nothing, photograph))
    assert "Misses" in page.text
    assert "False alarms" not in page.text
    assert not page.open


def test_no_photograph_takes_all_places():
    rows = [[i, i, i + 20, i + 20] for i in range(0, 200, 20)]
    scenes = [Scene("many", 560, 560, rows, [0] * 10), Scene("one", 560, 560, rows[:1], [0])]
    empty = [Detections(scene.name, [], [], []) for scene in scenes]
    misses = cases(evaluation_of(LABELS, scenes, empty), 0.5)["misses"]
    assert [case.index for case in spread(misses, 3)] == [0, 0, 1]
    assert len(spread(misses, 100)) == 11


def test_an_evaluation_without_pictures_is_refused():
    with pytest.raises(DataError, match="no pictures"):
        evaluation_of(LABELS, [], [])


def test_about_is_closed():
    with pytest.raises(ValueError, match="extra"):
        DetectionAbout(nam="x")
    assert np.isfinite(DetectionAbout().total_parameters)


def test_facts_about_the_data_are_those_of_the_splits(tmp_path):
    objects = {stem: [("ant", 1, 1, 9, 9), ("bee", 50, 1, 60, 9)] for stem in "abc"}
    source = voc(tmp_path, objects, splits={"train": "ab", "test": "c"})
    scenes = open_scenes(ScenesConfig(source=source, on_bad="skip", labels=("ant", "bee")))
    (tmp_path / "JPEGImages" / "c.png").write_bytes((tmp_path / "JPEGImages" / "a.png").read_bytes())
    facts = data_facts(split_scenes(scenes, ScenesSplit(validation=0, leaks="say")))
    assert facts["pictures"] == {"train": 2, "test": 1}
    assert facts["counts"]["train"] == {"ant": 2, "bee": 0}
    assert len(facts["faults"]) == 3
    assert "are the same picture" in facts["leaks"][0]
    assert DetectionAbout(**facts).leaks_checked
