from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tests.evaluation.test_charts import parts
from visionpeft.evaluation.row_charts import WIDTH, Row, interval_chart, matrix_chart


def size(svg: str) -> tuple[float, float]:
    _, _, width, height = map(float, ET.fromstring(svg).attrib["viewBox"].split())
    return width, height


def test_a_value_lies_within_its_interval_and_rows_go_down():
    svg = interval_chart("t", [Row("a", 0.8, 0.7, 0.85), Row("b", 0.9, 0.88, 0.95)], level=("all", 0.85))
    whiskers = [e for e in parts(svg, "line") if e.attrib["class"].startswith("whisker")]
    dots = parts(svg, "circle")
    for whisker, dot in zip(whiskers, dots, strict=True):
        assert float(whisker.attrib["x1"]) < float(dot.attrib["cx"]) < float(whisker.attrib["x2"])
        assert whisker.attrib["y1"] == dot.attrib["cy"]
    assert float(dots[0].attrib["cx"]) < float(dots[1].attrib["cx"])
    assert float(dots[0].attrib["cy"]) < float(dots[1].attrib["cy"])
    (level,) = [e for e in parts(svg, "line") if e.attrib["class"] == "level base"]
    assert float(dots[0].attrib["cx"]) < float(level.attrib["x1"]) < float(dots[1].attrib["cx"])
    texts = [e.text for e in parts(svg, "text")]
    assert {"a", "0.800", "0.700 to 0.850", "all"} <= set(texts)


def test_rows_without_value_or_interval_and_small_ones_are_shown_as_such():
    svg = interval_chart("t", [Row("a", 0.8), Row("b", None, note="12 pictures"), Row("c", 0.5, 0.1, 0.9, faint=True)])
    assert "no value" in [e.text for e in parts(svg, "text")]
    assert [e.attrib["class"] for e in parts(svg, "circle")] == ["dot main", "dot faint"]
    assert len([e for e in parts(svg, "line") if "whisker" in e.attrib["class"]]) == 1
    assert interval_chart("t", [Row("a", None)]) == ""


@pytest.mark.parametrize("classes", [2, 5, 9, 10, 40])
def test_a_matrix_has_a_cell_for_each_pair_within_its_frame(classes):
    counts = [[row * classes + column for column in range(classes)] for row in range(classes)]
    svg = matrix_chart("t", [f"a class with the number {row}" for row in range(classes)], counts)
    cells = parts(svg, "rect")
    assert len(cells) == classes**2
    width, height = size(svg)
    assert width == WIDTH
    for cell in cells:
        x, y, w, h = (float(cell.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0
        assert x + w <= width
        assert y + h <= height
    titles = [cell[0].text for cell in cells]
    assert titles[1] == f"a class with the number 0 taken for a class with the number 1: 1 of {sum(counts[0])}"


def test_a_matrix_says_counts_and_shares_and_shades_by_the_share():
    svg = matrix_chart("t", ["no", "yes"], [[30, 10], [0, 1200]])
    texts = [e.text for e in parts(svg, "text")]
    assert {"30", "75 %", "10", "25 %", "0", "0 %", "1,200", "100 %"} <= set(texts)
    shades = [float(cell.attrib["fill-opacity"]) for cell in parts(svg, "rect")]
    assert shades[2] < shades[1] < shades[0] < shades[3]
    assert "\N{EN DASH}" in [e.text for e in parts(matrix_chart("t", ["a", "b"], [[0, 0], [1, 1]]), "text")]


def test_texts_are_escaped_and_long_names_cut_with_the_whole_in_a_tooltip():
    name = "<b>a very long name of a class, far too long for its place</b>"
    for svg in (
        interval_chart("<i>", [Row(name, 0.5, note="<u>")]),
        matrix_chart("<i>", [name, "b"], [[1, 2], [3, 4]]),
    ):
        assert "<b>" not in svg
        assert "<i>" not in svg
        assert "<u>" not in svg
        assert name in [e.text for e in parts(svg, "title")]
