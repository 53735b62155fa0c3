from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.classification.made import KINDS, made
from tests.evaluation.pages import Page
from tests.evaluation.runs import HOSTILE
from visionpeft.errors import DataError
from visionpeft.evaluation.classification.about import RunAbout
from visionpeft.evaluation.classification.figures import ClassificationFigures, classification_figures
from visionpeft.evaluation.classification.predictions import Predictions
from visionpeft.evaluation.classification.report import Shown, render_classification, write_classification_report
from visionpeft.evaluation.classification.settings import ReportConfig
from visionpeft.evaluation.page import picture_uri
from visionpeft.evaluation.report_data import Outcome

QUICK = ReportConfig(resamples=60, subgroups=("site",), mistakes=3)
ABOUT = RunAbout(
    name="cells", program="visionpeft 0.2.0", base={"id": "visionpeft/emoji-vit", "hash": "9f2c"}, method="lora",
    adapter={"rank": 16}, trainable_parameters=294_912, total_parameters=11_796_480, adapter_bytes=1_190_000,
    seconds={"training": 221.0, "test": 12.5}, peak_memory=812_000_000, steps=400, best_step=300,
    counts={"train": {"A": 70, "B": 130}, "test": {"A": 31, "B": 29}}, patients={"train": 90, "test": 20},
    leaks_checked=True, machine={"device": "cpu", "cores": 2}, versions={"torch": "2.13.0"},
    warnings=("2 pictures were grey and became RGB",), settings="task: classify\n",
)  # fmt: skip


def picture(row: int) -> Image.Image:
    return Image.new("RGB", (24, 24), (row % 256, 90, 160))


def shown(errors) -> list[Shown]:
    return [Shown(picture(error.row), picture(200)) for error in errors]


def both(errors):
    return [Shown(picture(error.row), picture(200), picture(100)) for error in errors]


def rolled_out(errors):
    return [Shown(picture(error.row), flow=picture(100)) for error in errors]


@pytest.mark.parametrize(
    ("pictures", "count", "words"), [(both, 3, "Last: how much"), (rolled_out, 2, "Beside each: how")]
)
def test_maps_of_attention_are_on_the_page_and_named(pictures, count, words, tmp_path):
    path = write_classification_report(
        tmp_path, made("binary", 60), made("binary", 60, seed=1), about=RunAbout(), config=QUICK, pictures=pictures
    )
    page = path.read_text()
    assert page.count('alt="Attention rollout"') == page.count("<figcaption><span>is <b>") > 0
    assert page.count('class="pair"') * count == page.count("data:image/") - (page.count("data:image/svg"))
    assert words in " ".join(page.split())
    assert "attention, of no class" in page
    assert ("heat: " in page) == (count == 3)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_classification_report(
        folder, made("binary", 60), made("binary", 60, seed=1), about=ABOUT, config=QUICK, pictures=shown
    )
    return path, Page(path.read_text())


def test_the_page_says_what_was_measured(report):
    path, page = report
    found = ClassificationFigures.model_validate(json.loads((path.parent / "metrics.json").read_text())["figures"])
    assert not page.open
    point = found.classes[1].operating_point
    auc = found.metrics["auc"]
    for expected in (
        "It tells 'B' from 'A'. Measured on 60 test pictures of 20 patients",
        f"{auc.value:.3f}",
        f"95 % interval {auc.low:.3f} to {auc.high:.3f}",
        'by the rule "largest Youden index"',
        f"B {point.threshold:.3f} validation there {point.sensitivity:.3f} and {point.specificity:.3f}",
        f"{found.metrics['negative_predictive_value'].value:.3f}",
        f"{found.calibration.ece:.4f}",
        f"{found.calibrated.brier:.4f}",
        f"The temperature {found.temperature.value:.3g} was fitted on 60 validation pictures",
        "AUC by site",
        "Trained by lora 2.5 % 294,912 of 11,796,480 numbers. The file has 1.19 MB. The run took 3 min 54 s.",
        "train 200 90 70 130",
        "No leaks found",
        "2 pictures were grey and became RGB",
        "machine · cores 2",
        "task: classify",
    ):
        assert expected in page.text, expected
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert charts == ["ROC curve", "Precision-recall curve", "Reliability", "Confusion matrix", "AUC by site"]
    assert "nan" not in page.text.lower().split()


def test_metrics_json_is_a_runs_outcome_with_the_figures(report):
    path, _ = report
    text = (path.parent / "metrics.json").read_text()
    outcome = Outcome.model_validate_json(text)
    assert (outcome.name, outcome.task, outcome.best_step) == ("cells", "classify", 300)
    told = json.loads(text)
    assert outcome.after["auc"] == told["figures"]["metrics"]["auc"]["value"]
    assert told["report"] == QUICK.model_dump(mode="json")
    assert told["trainable_parameters"] == 294_912


def test_errors_are_shown_with_their_pictures_and_heat(report):
    _, page = report
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 6
    assert images[1]["src"] == picture_uri(picture(200))
    assert images[1]["alt"] == "Heat map for B"
    head, data = images[0]["src"].split(",")
    assert head == "data:image/png;base64"
    row = int(images[0]["alt"].removesuffix(".png"))
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == picture(row).tobytes()
    assert "Worst errors, which are also the most confident" in page.text


def test_pictures_are_asked_for_once_and_none_without_errors(tmp_path):
    asked = []

    def pictures(errors):
        asked.append([error.row for error in errors])
        return shown(errors)

    write_classification_report(tmp_path, made("multiclass", 60), about=ABOUT, config=QUICK, pictures=pictures)
    assert len(asked) == 1
    assert len(asked[0]) == len(set(asked[0])) >= 3
    perfect = Predictions(("a", "b"), np.array([[9.0, 0], [0, 9.0]]), np.array([0, 1]), ("x", "y"), "binary")
    asked.clear()
    write_classification_report(tmp_path, perfect, about=ABOUT, config=ReportConfig(resamples=20), pictures=pictures)
    assert asked == []
    assert "orst errors" not in Page((tmp_path / "report.html").read_text()).text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("validated", [True, False])
def test_every_kind_of_labels_has_a_whole_page(kind, validated, tmp_path):
    validation = made(kind, 60, seed=1) if validated else None
    path = write_classification_report(tmp_path, made(kind, 60), validation, about=RunAbout(), config=QUICK)
    page = Page(path.read_text())
    assert not page.open
    assert ("Confusion matrix" in page.text) == (kind != "multilabel")
    assert ("Quadratic kappa" in page.text) == (kind == "ordinal")
    assert ("AUC of each class" in page.text) == (kind != "binary")
    if not validated:
        assert "There is no validation set" in page.text
        assert "nothing: fixed" in page.text
        assert "No pictures decided from which probability on" in page.text
    assert {"Data", "Time", "Made with", "Settings"}.isdisjoint(re.findall(r"<h2>(.*?)</h2>", path.read_text()))


def test_leaks_are_said_twice(tmp_path):
    about = ABOUT.model_copy(update={"leaks": ("p7 is in 'train' and in 'test'",)})
    path = write_classification_report(tmp_path, made("binary", 60), about=about, config=QUICK)
    text = Page(path.read_text()).text
    assert text.count("p7 is in 'train' and in 'test'") == 2
    assert "figures on leaked pictures are too good" in text
    assert "No leaks found" not in text


def test_many_classes_show_the_curves_of_the_worst(tmp_path):
    given = made("multiclass", 200, 10)
    path = write_classification_report(tmp_path, given, about=ABOUT, config=QUICK)
    html = path.read_text()
    roc = html[html.index('aria-label="ROC curve"') :].split("</svg>")[0]
    assert roc.count("<polyline") == 8
    assert "Of 10 classes the 8 with the lowest AUC." in Page(html).text
    figures = classification_figures(given, None, QUICK)
    best = max(figures.classes, key=lambda part: part.figures["auc"].value).label
    assert f"<title>{best}</title></polyline>" not in roc


def test_nothing_comes_from_the_network_and_nothing_runs(report):
    path, page = report
    html = path.read_text()
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if attributes.get(name)]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert "http" not in re.sub(r"data:image/[^\"]*|http-equiv", "", html)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_hostile_texts_are_inert_wherever_they_appear():
    given = made("multiclass", 60, 3)
    columns = {HOSTILE: tuple(HOSTILE if row % 2 else "x" for row in range(60))}
    hostile = Predictions(
        tuple(f"{HOSTILE}{row}" for row in range(60)), given.logits, given.targets, (HOSTILE, "b", "c"), "multiclass",
        columns,
    )  # fmt: skip
    config = ReportConfig(resamples=20, subgroups=(HOSTILE,))
    about = RunAbout(
        name=HOSTILE, task=HOSTILE, program=HOSTILE, base={"id": HOSTILE, HOSTILE: HOSTILE}, method=HOSTILE,
        trainable_parameters=1, seconds={HOSTILE: 1.0}, machine={HOSTILE: HOSTILE}, warnings=(HOSTILE,),
        leaks=(HOSTILE,), leaks_checked=True, settings=HOSTILE, counts={HOSTILE: {HOSTILE: 1}},
    )  # fmt: skip
    figures = classification_figures(hostile, hostile, config)
    html = render_classification(figures, hostile, about=about, config=config, pictures=shown)
    page = Page(html)
    assert html.count("<script") == 0
    assert page.text.count("<script>alert('x')</script>") >= 20
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert not page.open


def test_a_fault_leaves_no_half_report(tmp_path):
    with pytest.raises(DataError, match="no column 'city'"):
        write_classification_report(
            tmp_path, made("binary"), about=ABOUT, config=ReportConfig(resamples=20, subgroups=("city",))
        )
    assert list(tmp_path.iterdir()) == []
