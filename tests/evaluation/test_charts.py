from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from visionpeft.evaluation.charts import HEIGHT, WIDTH, Level, Line, Mark, line_chart, share_chart, smoothed, ticks

SVG = "{http://www.w3.org/2000/svg}"


def parts(svg: str, tag: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(svg).iter() if e.tag == tag]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 400, [0, 100, 200, 300, 400]), (-0.1, 0.1, [-0.1, -0.05, 0, 0.05, 0.1])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("span", [1e-6, 0.37, 3, 777, 123456])
def test_there_are_a_few_ticks_in_any_range(span):
    found = ticks(0.1, 0.1 + span)
    assert 3 <= len(found) <= 8
    assert all(0.1 - 1e-9 * span <= tick <= 0.1 + span * (1 + 1e-9) for tick in found)


def test_a_line_goes_through_its_points_within_the_frame():
    svg = line_chart("t", [Line("a", [(0, 1.0), (50, 3.0), (100, 2.0)], dots=True)])
    points = [tuple(map(float, p.split(","))) for p in parts(svg, "polyline")[0].attrib["points"].split()]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][1] < points[2][1] < points[0][1]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert len(parts(svg, "circle")) == 3


def test_levels_and_the_best_step_are_marked():
    svg = line_chart("t", [Line("a", [(0, 0.1), (9, 0.2)])], levels=[Level("bound", 0.25, "bound")], best=9)
    texts = [e.text for e in parts(svg, "text")]
    assert "bound" in texts
    assert "chosen, 9" in texts
    assert [e for e in parts(svg, "line") if e.attrib["class"] == "level bound"]
    assert "chosen" not in line_chart("t", [Line("a", [(0, 0.1), (9, 0.2)])], best=10)


@pytest.mark.parametrize("points", [[], [(1, math.nan)]])
def test_nothing_to_draw_is_no_chart(points):
    assert line_chart("t", [Line("a", points)]) == ""


def test_what_is_not_finite_is_left_out_and_a_lone_point_is_a_dot():
    svg = line_chart("t", [Line("a", [(1, math.inf), (2, 0.5)])], levels=[Level("x", math.nan)])
    assert len(parts(svg, "circle")) == 1
    assert "nan" not in svg
    assert "inf" not in svg


def test_zero_is_shown_where_it_means_something():
    line = [Line("a", [(0, 5.0), (1, 6.0)])]
    assert "0" in [e.text for e in parts(line_chart("t", line, from_zero=True), "text") if e.attrib["x"] < "5"]
    assert "5" in [e.text for e in parts(line_chart("t", line), "text")]


def test_texts_are_escaped():
    svg = line_chart("<b>", [Line("<i>", [(0, 1), (1, 2)], dots=True)], levels=[Level("<u>", 1.0)])
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert "<u>" not in svg
    ET.fromstring(svg)


def test_smoothing_keeps_a_constant_and_halves_the_past():
    assert smoothed([(i, 3.0) for i in range(9)], 2.0) == [(i, pytest.approx(3.0)) for i in range(9)]
    curve = smoothed([(0, 0.0), (1, 1.0)], half_life=1.0)
    assert curve[1][1] == pytest.approx(1 / 1.5)


def test_a_share_chart_is_square_and_its_ends_are_0_and_1():
    line = Line("a", [(0, 0.0), (0.5, 0.75), (1, 1.0)], "s3")
    svg = share_chart("t", [line], x_label="x", y_label="y", diagonal="guessing")
    points = [tuple(map(float, p.split(","))) for p in parts(svg, "polyline")[0].attrib["points"].split()]
    (diagonal,) = [e for e in parts(svg, "line") if e.attrib["class"] == "level base"]
    ends = tuple(float(diagonal.attrib[name]) for name in ("x1", "y1", "x2", "y2"))
    assert (*points[0], *points[2]) == ends
    assert points[1][0] == pytest.approx((ends[0] + ends[2]) / 2, abs=0.1)
    assert points[1][1] == pytest.approx(ends[1] + 0.75 * (ends[3] - ends[1]), abs=0.1)
    assert parts(svg, "polyline")[0].attrib["class"] == "line s3"
    assert {"x", "y"} <= {e.text for e in parts(svg, "text")}
    assert share_chart("t", [Line("a", [])], x_label="", y_label="") == ""


def test_marks_are_where_they_belong_and_those_without_a_place_are_left_out():
    line = Line("a", [(0, 0), (1, 1)])
    marks = [Mark("threshold <1>", 0.25, 0.5, "s1"), Mark("gone", math.nan, 0.5)]
    svg = share_chart("t", [line], x_label="x", y_label="y", marks=marks)
    (ring,) = parts(svg, "circle")
    (start, end) = [tuple(map(float, p.split(","))) for p in parts(svg, "polyline")[0].attrib["points"].split()]
    assert float(ring.attrib["cx"]) == pytest.approx(start[0] + 0.25 * (end[0] - start[0]), abs=0.1)
    assert float(ring.attrib["cy"]) == pytest.approx((start[1] + end[1]) / 2, abs=0.1)
    texts = [e.text for e in parts(svg, "text")]
    assert "threshold <1>" in texts
    assert "gone" not in texts


def test_a_dots_area_is_its_share():
    line = Line("a", [(0.1, 0.1), (0.5, 0.5), (0.9, 0.9)], dots=True, weights=[0.0, 0.25, 1.0])
    radii = [float(e.attrib["r"]) for e in parts(share_chart("t", [line], x_label="", y_label=""), "circle")]
    assert radii == [2.5, 7.0, 11.5]
