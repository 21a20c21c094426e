"""How several data sets share the updates of a run."""

from __future__ import annotations

from collections import Counter

import pytest

from densekit.data.loading.mixing import Mixing
from densekit.errors import DensekitError


@pytest.mark.parametrize(
    ("shares", "batch", "sizes"),
    [
        ({"": 1.0}, 8, [8]),
        ({"a": 1, "b": 1}, 8, [4, 4]),
        ({"a": 1, "b": 0.5}, 12, [8, 4]),
        ({"a": 300, "b": 20}, 8, [7, 1]),
        ({"a": 1, "b": 1, "c": 1}, 8, [3, 3, 2]),
        ({"a": 1000, "b": 1, "c": 1}, 3, [1, 1, 1]),
    ],
)
def test_every_set_gets_its_share_of_a_batch_and_at_least_one_image(shares, batch, sizes):
    mixing = Mixing(shares, batch)
    assert list(mixing.sizes.values()) == sizes
    assert mixing.sets(7) == list(shares)
    assert mixing.before("a" if "a" in shares else "", 7) == 7


@pytest.mark.parametrize(("shares", "period"), [({"a": 1, "b": 1}, 2), ({"a": 3, "b": 1}, 4), ({"a": 2, "b": 0.5}, 5)])
def test_in_turn_each_set_comes_as_often_as_its_share_and_evenly(shares, period):
    mixing = Mixing(shares, 8, in_turn=True)
    turns = [mixing.sets(step)[0] for step in range(20 * period)]
    assert mixing.sizes == {"a": 8, "b": 8}
    for start in range(0, len(turns), period):
        of_period = Counter(turns[start : start + period])
        assert of_period["a"] / of_period["b"] == shares["a"] / shares["b"]


def test_where_a_run_goes_on_each_set_stands_where_it_stood():
    shares = {"a": 1, "b": 2.5, "c": 0.7}
    whole, later = Mixing(shares, 4, in_turn=True), Mixing(shares, 4, in_turn=True)
    turns = [whole.sets(step)[0] for step in range(50)]
    for name in shares:
        assert later.before(name, 37) == turns[:37].count(name)
    assert later.sets(37) == [turns[37]]


def test_fewer_images_than_sets_are_refused():
    with pytest.raises(DensekitError, match="1 images can't be taken from 2 data sets; make it at least 2"):
        Mixing({"a": 1, "b": 1}, 1)
    assert Mixing({"a": 1, "b": 1}, 1, in_turn=True).sizes == {"a": 1, "b": 1}
