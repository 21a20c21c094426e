"""Tables of an evaluation: a number that is not defined is shown as no number."""

from __future__ import annotations

import math

from densekit.show.report import tables, undefined


def test_numbers_that_are_not_defined_are_shown_as_dashes():
    row = {"AP": None, "objects": 0}
    numbers = {"AP": None, "AP50": 0.5, "loss": math.nan, "losses": {"box": math.inf}, "per_class": {"cat": row}}
    (_, _, main), (_, columns, classes) = tables("detection", {**numbers, "images": 4})
    assert [r[:2] for r in main] == [
        ["AP", "-"], ["AP50", 0.5], ["loss", "-"], ["images", 4], ["loss: box", "-"]
    ]  # fmt: skip
    assert (columns, classes) == (("class", "AP", "objects"), [["cat", "-", 0]])


def test_of_an_undefined_main_number_the_reason_is_said():
    assert undefined("detection", {"AP": None, "images": 4}) == (
        "AP is not defined: the 4 images have no object but crowds"
    )
    assert undefined("detection", {"AP": 0.0, "AP_small": None, "images": 4}) is None
