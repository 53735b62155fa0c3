"""Every layout read as people have it; what is wrong is told all at once, by file and line."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from tests.data.speech.sets import Lines, clips, config, table, tone, write
from visionpeft.data.speech.readers import open_speech
from visionpeft.data.speech.utterances import Timed
from visionpeft.errors import DataError


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_of_each_kind(tmp_path, suffix):
    rows = [{"path": f"{n}.wav", "text": f'he said, "{n}"', "speaker": "ab"[n], "age": 20 + n} for n in range(2)]
    for row in rows:
        write(tmp_path / "sound" / row["path"], tone(0.5))
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        table(path, rows)
    found = open_speech(config(path, source={"audio": tmp_path / "sound"}, on_bad="skip"))
    assert [item.text for item in found.items] == ['he said, "0"', 'he said, "1"']
    assert [dict(item.columns) for item in found.items] == [
        {"speaker": "a", "age": "20"},
        {"speaker": "b", "age": "21"},
    ]
    assert found.seconds(1) == 0.5
    np.testing.assert_allclose(found.audio(0), tone(0.5), atol=1e-4)
    assert [item.name for item in found.subset([1]).items] == ["1.wav"]


def test_stretches_of_one_file_by_start_and_end(tmp_path):
    write(tmp_path / "long.flac", np.concatenate([tone(1, 300), tone(1, 600)]))
    rows = [
        {"path": "long.flac", "text": "low", "start": 0, "end": 1},
        {"path": "long.flac", "text": "high", "start": 1, "end": ""},
    ]
    found = open_speech(config(table(tmp_path / "t.csv", rows)))
    assert [item.name for item in found.items] == ["long.flac#0-1", "long.flac#1-"]
    np.testing.assert_allclose(found.audio(1), tone(1, 600), atol=1e-4)
    assert found.seconds(1) == 1.0


def test_columns_may_have_any_names_and_paths_may_be_written_in_full(tmp_path):
    path = write(tmp_path / "a" / "0.wav")
    t = table(tmp_path / "t.csv", [{"clip": path, "words": "yes", "part": "dev"}])
    columns = {"file": "clip", "text": "words", "split": "part"}
    (item,) = open_speech(config(t, source={"columns": columns})).items
    assert (item.name, item.path, item.text, item.split) == ("a/0.wav", path, "yes", "validation")


def test_common_voice(tmp_path):
    for number in range(3):
        write(tmp_path / "clips" / f"c{number}.mp3", tone(0.5, 300 + 100 * number))
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\taccents\n"
    for part, number, sentence in (("train", 0, 'a "quote that never ends'), ("dev", 1, "two"), ("test", 2, "three")):
        (tmp_path / f"{part}.tsv").write_text(f"{header}s{number}\tc{number}.mp3\t9\t{sentence}\t2\tÉire\n")
    found = open_speech(config(tmp_path, "common_voice"))
    assert [(item.text, item.split) for item in found.items] == [
        ('a "quote that never ends', "train"), ("two", "validation"), ("three", "test"),
    ]  # fmt: skip
    assert found.items[0].columns["client_id"] == "s0"
    assert found.items[0].columns["accents"] == "Éire"
    (tmp_path / "validated.tsv").write_text(f"{header}s0\tc0.mp3\t9\tone\t2\t\n")
    (item,) = open_speech(config(tmp_path, "common_voice", source={"parts": ["validated"]})).items
    assert item.split is None
    with pytest.raises(DataError, match=r"validatd\.tsv does not exist\. Did you mean 'validated\.tsv'"):
        open_speech(config(tmp_path, "common_voice", source={"parts": ["validatd"]}))
    with pytest.raises(DataError, match="holds no folder clips"):
        open_speech(config(tmp_path / "clips", "common_voice"))


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_an_audio_folder_with_one_table(tmp_path, kind):
    rows = [{"file_name": f"{part}/0.wav", "transcription": part, "speaker": 1} for part in ("train", "test")]
    for number, row in enumerate(rows):
        write(tmp_path / row["file_name"], tone(0.5, 300 + number))
    write(tmp_path / "train" / "more.wav")
    table(tmp_path / f"metadata{kind}", rows)
    said = Lines()
    found = open_speech(config(tmp_path, "audiofolder"), said)
    assert [(item.name, item.text, item.split) for item in found.items] == [
        ("train/0.wav", "train", "train"), ("test/0.wav", "test", "test"),
    ]  # fmt: skip
    assert said.said == [f"{tmp_path}: no row names train/more.wav: left out."]


def test_an_audio_folder_with_a_table_a_split(tmp_path):
    for number, part in enumerate(("train", "validation")):
        write(tmp_path / "data" / part / "x" / "0.wav", tone(0.5, 300 + number))
        table(tmp_path / "data" / part / "metadata.csv", [{"file_name": "x/0.wav", "text": part}])
    found = open_speech(config(tmp_path, "audiofolder"))
    assert [(item.name, item.split) for item in found.items] == [
        ("data/train/x/0.wav", "train"), ("data/validation/x/0.wav", "validation"),
    ]  # fmt: skip
    table(tmp_path / "data" / "train" / "metadata.jsonl", [{"file_name": "x/0.wav", "text": "a"}])
    with pytest.raises(DataError, match=r"holds metadata\.csv and metadata\.jsonl: keep one"):
        open_speech(config(tmp_path, "audiofolder"))
    with pytest.raises(DataError, match=r"holds no metadata\.csv"):
        open_speech(config(tmp_path / "data" / "train" / "x", "audiofolder"))


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    write(tmp_path / "good.wav", tone(0.5))
    write(tmp_path / "silent.wav", np.zeros(16_000, np.float32))
    write(tmp_path / "short.wav", tone(0.05))
    write(tmp_path / "long.wav", tone(31))
    (tmp_path / "words.wav").write_text("no sound")
    rows = [
        ("good.wav", "yes", ""), ("missing.wav", "a", ""), ("silent.wav", "b", ""), ("short.wav", "c", ""),
        ("long.wav", "d", ""), ("words.wav", "e", ""), ("good.wav", "again", ""), ("../secret.wav", "f", ""),
        ("good.wav", " ", "0.1"), ("good.wav", "g", "soon"), ("good.wav", "h", "9"),
    ]  # fmt: skip
    t = table(tmp_path / "t.csv", [dict(zip(("path", "text", "start"), row, strict=True)) for row in rows])
    with pytest.raises(DataError) as caught:
        open_speech(config(t))
    head, *lines, remedy = str(caught.value).splitlines()
    kinds = "1 no text, 1 silent, 3 sound, 1 too long, 1 too short, 1 twice, 2 unreadable row"
    assert head == f"10 of 11 rows cannot be used ({kinds}):"
    expected = [
        (3, "missing.wav is not there"), (4, "silent.wav is silent"), (5, "short.wav has 0.050 s: at least 0.1 s"),
        (6, "long.wav has 31.0 s, and 30 s are heard at once: when its words are said is not known"),
        (7, "words.wav is not sound: its content is text"), (8, f"good.wav stands in {t}, line 2 too"),
        (9, "names the file '../secret.wav': expected a path within"), (10, "good.wav#0.1- has no text"),
        (11, "its start is 'soon': expected seconds"), (12, "no sound lies between 9 s and 0.5 s"),
    ]  # fmt: skip
    assert len(lines) == len(expected)
    for line, (number, says) in zip(lines, expected, strict=True):
        assert line.startswith(f"  {t}, line {number}: ")
        assert says in line
    assert "set on_bad" in remedy
    said = Lines()
    found = open_speech(config(t, on_bad="skip", long="skip"), said)
    assert [item.text for item in found.items] == ["yes"]
    assert len(found.faults) == 10
    assert said.said[-1] == "10 of 11 rows could not be used and were left out."
    with pytest.raises(DataError, match=r"1 of 11 rows cannot be used \(1 too long\)"):
        open_speech(config(t, on_bad="skip"))


def test_headers_alone_may_be_checked(tmp_path):
    sound = tone()
    sound[5] = np.nan
    write(tmp_path / "a.wav", sound, subtype="FLOAT")
    t = table(tmp_path / "t.csv", [{"path": "a.wav", "text": "a"}])
    found = open_speech(config(t, check="files"))
    assert (found.seconds(0), found.items[0].digest) == (1.0, "")
    with pytest.raises(DataError, match="NaN"):
        open_speech(config(t))


def test_tables_that_cannot_be_read(tmp_path):
    def fails(match, name="t.csv", text="path,text\n", **source):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=match):
            open_speech(config(tmp_path / name, source=source))

    fails("holds no utterance that can be used")
    fails(r"has no column path or file_name or .*; it has: clip, text\. Name the one", text="clip,text\na.wav,b\n")
    fails("has no column text or .* columns.text", text="path,words\na.wav,b\n")
    fails("no column 'txt'. Did you mean 'text'", text="path,text\na.wav,b\n", columns={"text": "txt"})
    fails("line 2 is no JSON", name="t.jsonl", text='{"path": "a.wav", "text": "b"}\n{"path": \n')
    fails("line 1 holds '3': expected one object a line", name="t.jsonl", text="3\n")
    fails("line 1 is no JSON", name="t.jsonl", text="[" * 100_000)
    fails("the split 'trial' is none of train", text="path,text,split\na.wav,b,trial\n")
    with pytest.raises(DataError, match=r"the table .*u\.csv does not exist"):
        open_speech(config(tmp_path / "u.csv"))


def test_segments_are_read_from_json(tmp_path):
    write(tmp_path / "a.wav", tone(2))
    segments = [
        {"start": 0, "end": 1.0, "text": " one "},
        {"start": 1, "end": 1.5, "text": ""},
        {"start": 1.5, "end": 2, "text": "two"},
    ]
    t = table(tmp_path / "t.jsonl", [{"path": "a.wav", "segments": segments}])
    (item,) = open_speech(config(t)).items
    assert item.text == "one two"
    assert item.segments == (Timed(0, 1, "one"), Timed(1.5, 2, "two"))
    for wrong, match in (
        ([{"start": 2, "end": 1, "text": "a"}], "its segment 1 is .*expected start < end"),
        ([{"start": 0, "end": 1}], "its segment 1"),
        ([{"start": 1, "end": 2, "text": "a"}, {"start": 0, "end": 1, "text": "b"}], "sort them"),
        ([{"start": True, "end": 2, "text": "a"}], "its segment 1"),
        ({"start": 0}, "expected a JSON list"),
        ([7], "its segment 1 is 7"),
    ):
        (tmp_path / "t.jsonl").write_text(json.dumps({"path": "a.wav", "segments": wrong}))
        with pytest.raises(DataError, match=match):
            open_speech(config(t))


def test_settings_are_closed(tmp_path):
    with pytest.raises(ValidationError, match="longest"):
        config(tmp_path, longest=31)
    with pytest.raises(ValidationError, match="leaves nothing under longest"):
        config(tmp_path, longest=1, shortest=1)
    with pytest.raises(ValidationError, match="colour"):
        config(tmp_path, colour=1)


def test_sound_that_changed_since_is_another_digest(tmp_path):
    t = clips(tmp_path, 1)
    before = open_speech(config(t)).digest(0)
    assert open_speech(config(t, check="files")).digest(0) == before
    write(tmp_path / "0.wav", tone(0.5, 999))
    assert open_speech(config(t)).digest(0) != before
