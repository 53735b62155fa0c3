"""What is reported and what is chosen on, by the parts that data have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from visionpeft.delivery.evaluation import Evaluation
from visionpeft.delivery.parts import given_parts, measured_again, measured_run, other_data
from visionpeft.errors import ConfigError, DataError
from visionpeft.progress import SILENT, RecordingProgress

WHOLE = tuple("abcdef")


class Few(tuple):
    """A few letters."""

    def subset(self, indices: list[int]) -> Few:
        return Few(self[index] for index in indices)


TRAIN, VALIDATION, TEST = Few("abc"), Few("de"), Few("f")


@dataclass(frozen=True)
class Parts:
    train: Few = TRAIN
    validation: Few = VALIDATION
    test: Few = TEST


def answer(part: Few, label: str) -> str:
    return f"{label}: {''.join(part)}"


def run(splits: Parts, things: str = "pictures"):
    progress = RecordingProgress(SILENT)
    return measured_run(splits, answer, progress, things), progress.lines


def test_a_run_reports_its_test_data_and_chooses_on_validation():
    found, lines = run(Parts(), "recordings")
    assert (found.data, found.part, found.answers) == (Few("f"), "test", "test recordings: f")
    assert found.chosen == "validation recordings: de"
    assert lines == []
    assert run(Parts(validation=Few()))[0].chosen is None


def test_without_test_data_validation_is_reported_and_it_is_said():
    found, lines = run(Parts(test=Few()))
    assert (found.data, found.part, found.answers) == (Few("de"), "validation", "validation pictures: de")
    assert found.chosen is found.answers  # asked once
    assert lines == ["There are no test pictures: the figures are of the validation pictures."]
    with pytest.raises(DataError, match=r"neither test nor validation pictures to report on: set data\.split"):
        run(Parts(validation=Few(), test=Few()))


@pytest.mark.parametrize(
    ("split", "reported", "chosen"),
    [
        ("test", "test pictures: f", "validation pictures: de"),
        ("train", "train pictures: abc", "validation pictures: de"),
        ("all", "all pictures: abcdef", "validation pictures: de"),
        ("validation", "validation pictures: de", None),
    ],
)
def test_an_evaluation_reports_the_part_that_is_named(split: str, reported: str, chosen: str | None):
    found = measured_again(Evaluation(Path("run"), split=split), Parts(), Few(WHOLE), answer)
    assert (found.answers, found.chosen, found.part) == (reported, chosen, split)


def test_on_other_data_nothing_is_chosen_and_nothing_was_learned():
    job = Evaluation(Path("run"), data=Path("other"), split="train")
    found = measured_again(job, Parts(), Few(WHOLE), answer)
    assert (found.answers, found.chosen, found.part) == ("train pictures: abc", None, "test")
    with pytest.raises(DataError, match="no pictures are in the split 'train': take another one, --split all"):
        measured_again(job, Parts(train=Few()), Few(WHOLE), answer)


def test_data_split_themselves_and_what_says_nothing_is_tested():
    assert given_parts(Few(WHOLE), ["train", None, "validation", "test", None, "train"]) == (
        Few("af"), Few("c"), Few("bde"),
    )  # fmt: skip


def test_other_data_are_settings_or_a_path_that_tells_its_format(tmp_path: Path):
    from visionpeft.data.classification import PicturesConfig

    def source_of(path: Path) -> dict[str, str]:
        return {"format": "folder", "path": str(path)}

    job = Evaluation(Path("run"), ("on_bad=skip",), data=tmp_path)
    known = {"labels": ["a", "b"], "kind": "binary"}
    config = other_data(job, PicturesConfig, source_of, known)
    assert (config.source.path, config.on_bad, config.labels, config.kind) == (tmp_path, "skip", ("a", "b"), "binary")
    file = tmp_path / "other.yaml"
    file.write_text("source: {format: folder, path: here}\nlabels: [b, a]\n")
    config = other_data(Evaluation(Path("run"), data=file), PicturesConfig, source_of, known)
    assert (config.labels, config.kind) == (("b", "a"), "binary")  # the settings' own come first
    with pytest.raises(ConfigError, match="name the data with --data"):
        other_data(Evaluation(Path("run")), PicturesConfig, source_of, known)
