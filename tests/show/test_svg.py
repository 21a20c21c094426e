"""Charts: marks at round values, every point inside, a lone point that shows."""

from __future__ import annotations

import re

import pytest

from densekit.show import svg


def marks(text, axis):
    return [float(v) for v in re.findall(rf'class="{axis}" data-at="([^"]*)"', text)]


def test_marks_are_round_values_and_steps_are_not_moved():
    text = svg.chart({"loss": [(1, 2.29), (150, 0.4), (300, 0.0006)]}, across="step")
    assert marks(text, "x") == [100, 200, 300]
    assert marks(text, "y") == [0, 0.5, 1, 1.5, 2, 2.5]
    assert 'data-axes="1 300 0 2.5"' in text
    points = re.search(r'points="([^"]*)"', text)[1].split(" ")
    assert points[0].startswith("74.0,")
    assert points[-1] == "618.0,227.9"


@pytest.mark.parametrize("values", [(1e-6, 9.97e-4), (-3.2, 1e9), (0.25, 0.25), (-0.0, 0.0), (1e-300, 2e-300)])
def test_any_range_has_a_few_marks_within(values):
    text = svg.chart({"lr": list(enumerate(values))}, across="step")
    low, high = (float(v) for v in re.search(r'data-axes="0 1 (\S+) (\S+)"', text).groups())
    assert low <= min(values)
    assert high >= max(values)
    assert 2 <= len(marks(text, "y")) <= 7


def test_a_lone_point_is_a_dot():
    text = svg.chart({"<b>": [(3, 0.5)]}, across="step")
    assert 'class="dot"' in text
    assert re.search(r'points="(\S+) \1"', text)
    assert "<b>" not in text
