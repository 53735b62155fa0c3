from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import pytest
from PIL import Image, PngImagePlugin

from tests.evaluation.pages import Page
from tests.evaluation.runs import HOSTILE, make_run, picture
from visionpeft.errors import DataError, FileFormatError
from visionpeft.evaluation.page import data_uri, spell_bytes, spell_number, spell_seconds
from visionpeft.evaluation.report import preview_table, render, write_report
from visionpeft.evaluation.report_data import FileProof, Outcome, Picture, Preview, ProgramRow, ReportData, from_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "robot")


def test_the_page_shows_what_the_runs_files_say(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text())
    assert not page.open
    after = json.loads((run / "metrics.json").read_text())["after"]
    digest = hashlib.sha256((run / "adapter.safetensors").read_bytes()).hexdigest()
    for expected in (
        "sks robot",
        f"{100 * after['subject_share']:.0f} %",
        f"{after['drift']:.2f}",
        "The bound is 0.25: kept",
        "96 of 96",
        "2.1e-07",
        "applies whole",
        "another layout expects keys that begin with lora_unet",
        digest,
        "1.4 MB",
        "3 min 35 s",
        "turned upright by its EXIF entry",
        "two pictures are nearly the same",
        "task: dreambooth",
        "the weights of step 300 were chosen",
        "2.13.0",
    ):
        assert expected in page.text
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert charts == [
        f"{name} by step" for name in ("Loss", "Likeness", "Prompts followed", "Drift", "Variety", "Score")
    ]
    assert "Not shown" not in page.text
    assert "unknown" not in page.text


def test_what_is_written_is_read_back(run):
    data = from_run(run)
    (proof,) = data.proofs
    assert proof.file == "exports/robot.kohya.safetensors"
    assert [row.verdict for row in proof.programs] == ["applies whole"] * 3 + ["another layout"]
    assert proof.programs[3].max_abs_error is None
    assert data.outcome.after["drift"] == pytest.approx(0.21)


@pytest.mark.parametrize(("accepted", "verdict"), [(False, "refused"), (True, "applies in part")])
def test_a_program_that_should_apply_the_file_and_does_not_is_shown(accepted, verdict):
    row = ProgramRow(program="p", accepted=accepted, applied=3, expected=4, ok=False)
    proof = FileProof(file="f", programs=[row])
    page = Page(render(ReportData(outcome=Outcome(name="n"), proofs=(proof,))))
    assert verdict in page.text
    assert ("span", {"class": "no"}) in page.tags


def test_the_figures_are_those_of_the_files(run, tmp_path):
    other = make_run(tmp_path / "other")
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["after"]["drift"], metrics["after"]["subject_share"] = 0.37, 0.123
    (other / "metrics.json").write_text(json.dumps(metrics))
    text = Page(render(from_run(other))).text
    assert "0.37" in text
    assert "12 %" in text
    assert "not kept" in text


def test_nothing_comes_from_the_network_and_nothing_runs(run):
    html = render(from_run(run))
    page = Page(html)
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if attributes.get(name)]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert "http" not in re.sub(r"data:image/[^\"]*|http-equiv", "", html)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_a_hostile_prompt_is_inert_wherever_it_appears(tmp_path):
    folder = make_run(tmp_path / "x", prompt=HOSTILE)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {"name": HOSTILE, "subject": HOSTILE, "task": HOSTILE, "program": HOSTILE, "warnings": [HOSTILE]}
    metrics |= {"machine": {HOSTILE: HOSTILE}, "seconds": {HOSTILE: 1.0}, "base": {"id": HOSTILE}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    proof = json.loads((folder / "proof.json").read_text())
    proof["files"][0]["programs"][0] |= {"program": HOSTILE, "notes": [HOSTILE]}
    (folder / "proof.json").write_text(json.dumps(proof))
    html = render(from_run(folder))
    page = Page(html)
    assert html.count("<script") == 0
    assert page.text.count("<script>alert('x')</script>") >= 10
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert not page.open


def test_pictures_are_inside_and_lose_their_metadata(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "secret words")
    picture(5).save(tmp_path / "a.png", pnginfo=info)
    head, data = data_uri(tmp_path / "a.png").split(",")
    assert head == "data:image/png;base64"
    back = Image.open(io.BytesIO(base64.b64decode(data)))
    assert back.tobytes() == picture(5).tobytes()
    assert "prompt" not in back.info


def test_large_pictures_are_made_smaller(tmp_path):
    picture(5, 1400).save(tmp_path / "a.png")
    head, data = data_uri(tmp_path / "a.png").split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (512, 512)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(FileFormatError, match=r"a\.png is not a picture"):
        data_uri(tmp_path / "a.png")


def test_what_is_missing_is_left_out_and_said(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "kind": "train", "loss": 0.5}\n{"step": 2, "ki')
    data = from_run(tmp_path)
    assert data.history.curve("loss") == [(1.0, 0.5)]
    page = Page(write_report(tmp_path).read_text())
    assert "Not shown" in page.text
    for words in (
        "no scores over the steps",
        "no previews",
        "no headline figures",
        "no proof",
        "settings are not shown",
    ):
        assert words in page.text
    assert "There is no loss curve" not in page.text
    assert [a["aria-label"] for tag, a in page.tags if tag == "svg"] == ["Loss by step"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="no run at"):
        write_report(tmp_path / "none")
    with pytest.raises(DataError, match=r"neither log\.jsonl nor metrics\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("log.jsonl", "nonsense\n", r"log.jsonl:1: not JSON"),
        ("log.jsonl", '{"kind": "train"}\n', r"log.jsonl:1: expected an object with a whole number 'step'"),
        ("metrics.json", '{"steps": "many"}', r"metrics.json: steps"),
        ("metrics.json", "[]", r"metrics.json"),
        ("proof.json", '{"files": [{"file": "a", "programs": [{}]}]}', r"proof.json: files.0.programs.0.program"),
        ("config.yaml", b"\xff\xfe\x00", r"config.yaml is not UTF-8"),
        ("before_after.png", "no", r"before_after.png is not a picture"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, says):
    (tmp_path / "metrics.json").write_text("{}")
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileFormatError, match=says):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_previews_outside_the_folder_are_not_read(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    picture(1).save(tmp_path / "outside.png")
    line = {"step": 1, "kind": "preview", "files": {"a": "../outside.png"}, "captions": {}}
    (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    assert from_run(folder).history.previews == ()


def test_many_previews_are_thinned_out_and_keep_the_ends_and_the_chosen_one(tmp_path):
    picture(1).save(tmp_path / "p.png")
    previews = [
        Preview(step, (Picture(tmp_path / "p.png", "x"), Picture(tmp_path / "p.png", "y"))) for step in range(50)
    ]
    table = preview_table(previews, best_step=37)
    assert table.steps[0] == 0
    assert table.steps[-1] == 49
    assert 37 in table.steps
    assert len(table.steps) + table.left_out == 50
    assert [caption for caption, _ in table.rows] == ["x", "y"]
    assert not table.sheets


def test_one_sheet_a_step_is_shown_large(tmp_path):
    picture(1, 900).save(tmp_path / "p.png")
    data = ReportData(outcome=Outcome(name="n"), history=from_previews(tmp_path))
    html = render(data)
    assert 'class="sheets"' in html
    assert "<table" not in html
    assert data_uri(tmp_path / "p.png", 1280) in html


def from_previews(folder):
    from visionpeft.evaluation.report_data import History

    return History(previews=(Preview(100, (Picture(folder / "p.png", "a | b"),)),))


@pytest.mark.parametrize(
    ("value", "expected"), [(12, "12 bytes"), (1_400_000, "1.4 MB"), (2_310_000_000, "2.31 GB"), (1500, "1.5 kB")]
)
def test_bytes_are_spelt(value, expected):
    assert spell_bytes(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.42, "0.4 s"), (59, "59 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")]
)
def test_seconds_are_spelt(value, expected):
    assert spell_seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(1234567, "1,234,567"), (0.123456, "0.1235"), (True, "True"), ("x", "x")]
)
def test_numbers_are_spelt(value, expected):
    assert spell_number(value) == expected
