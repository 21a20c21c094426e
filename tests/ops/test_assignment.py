"""Which candidate learns what, and which are drawn."""

from __future__ import annotations

import torch
import torchvision
from torchvision.models.detection._utils import Matcher

from densekit.ops.assignment import assign, at_least_one
from densekit.ops.sampling import random_keys, sample
from densekit.types import BoxTargets


def targets_of(boxes: torch.Tensor, crowd: list[int] = (), invalid: list[int] = ()) -> BoxTargets:
    """Targets of one image."""
    flags = torch.zeros(2, 1, len(boxes), dtype=torch.bool)
    flags[0, :, list(crowd)] = True
    flags[1, :, list(invalid)] = True
    return BoxTargets(boxes[None], torch.zeros(1, len(boxes), dtype=torch.int64), flags[0], ~flags[1])


def test_assignment_is_torchvisions_with_and_without_low_quality_matches(random_boxes):
    boxes, candidates = random_boxes(6), random_boxes(300, seed=1)
    overlaps = torchvision.ops.box_iou(boxes, candidates)
    for best_for_each in (True, False):
        expected = Matcher(0.5, 0.3, best_for_each)(overlaps.clone())
        ours = assign(
            candidates[None],
            targets_of(boxes),
            positive_overlap=0.5,
            negative_overlap=0.3,
            best_for_each=best_for_each,
        )
        assert torch.equal(ours.positive[0], expected >= 0)
        assert torch.equal(ours.negative[0], expected == Matcher.BELOW_LOW_THRESHOLD)
        assert torch.equal(ours.object[0][expected >= 0], expected[expected >= 0])


def test_padding_takes_no_candidate_and_an_empty_image_makes_all_negative(random_boxes):
    candidates = torch.cat([random_boxes(50), torch.zeros(3, 4)])[None]
    empty = targets_of(torch.zeros(2, 4), invalid=[0, 1])
    ours = assign(candidates, empty, positive_overlap=0.5, negative_overlap=0.3, best_for_each=True)
    assert ours.negative.all()
    assert not ours.positive.any()


def test_an_object_that_nothing_touches_takes_no_candidate(random_boxes):
    far = targets_of(torch.tensor([[5000.0, 5000.0, 5010.0, 5010.0]]))
    ours = assign(random_boxes(50)[None], far, positive_overlap=0.5, negative_overlap=0.3, best_for_each=True)
    assert not ours.positive.any()


def test_candidates_inside_a_crowd_are_neither_learned_nor_negative():
    candidates = torch.tensor([[0.0, 0.0, 10.0, 10.0], [6.0, 0.0, 16.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    crowd = targets_of(torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 61.0, 61.0]]), crowd=[0])
    ours = assign(candidates[None], crowd, positive_overlap=0.5, negative_overlap=0.3, best_for_each=True)
    assert ours.positive[0].tolist() == [False, False, True]
    assert ours.negative[0].tolist() == [False, True, False]  # 40 % of the second lies in the crowd


def test_a_batch_without_objects_gets_one_column_of_padding():
    flags = torch.zeros(2, 0, dtype=torch.bool)
    padded = at_least_one(BoxTargets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), flags, flags))
    assert padded.boxes.shape == (2, 1, 4)
    assert not padded.valid.any()


def draw(positive: torch.Tensor, negative: torch.Tensor, seeds: list[int], **options):
    return sample(
        positive, negative, torch.tensor(seeds), **{"count": 8, "positive_fraction": 0.5, "stream": 1} | options
    )


def test_quota_of_positives_is_kept_and_negatives_fill_the_rest():
    positive = torch.zeros(3, 40, dtype=torch.bool)
    positive[0, :20] = True  # more than the quota
    positive[1, :2] = True  # fewer
    drawn = draw(positive, ~positive, [1, 2, 3])
    assert drawn.positive.sum(1).tolist() == [4, 2, 0]
    assert drawn.valid.all()
    assert torch.equal(positive.gather(1, drawn.chosen), drawn.positive)
    for row in drawn.chosen:
        assert len(set(row.tolist())) == 8


def test_too_few_candidates_leave_invalid_places():
    negative = torch.zeros(1, 40, dtype=torch.bool)
    negative[0, [3, 9]] = True
    drawn = draw(torch.zeros_like(negative), negative, [5])
    assert drawn.valid.sum() == 2
    assert set(drawn.chosen[drawn.valid].tolist()) == {3, 9}
    assert draw(negative[:, :4], negative[:, :4], [5]).chosen.shape == (1, 4)


def test_draws_depend_on_the_images_seed_alone():
    negative = torch.ones(2, 500, dtype=torch.bool)
    both = draw(~negative, negative, [7, 8])
    alone = draw(~negative[1:], negative[1:], [8])
    assert torch.equal(both.chosen[1], alone.chosen[0])
    assert set(both.chosen[0].tolist()) != set(both.chosen[1].tolist())
    assert not torch.equal(draw(~negative, negative, [7, 8], stream=2).chosen, both.chosen)


def test_keys_are_distinct_and_evenly_spread():
    keys = random_keys(torch.tensor([0, 1, -(2**62), 2**40]), 20_000, stream=1)
    assert all(len(row.unique()) == 20_000 for row in keys)
    counts = torch.stack([torch.bincount(row >> 28, minlength=16) for row in keys]).float()
    assert counts.shape == (4, 16)
    # chi-square with 15 degrees of freedom: 37.7 is exceeded once in a thousand
    assert ((counts - 1250) ** 2 / 1250).sum(1).max() < 37.7
    ranks = keys.argsort(1).argsort(1).float()
    assert torch.corrcoef(ranks).fill_diagonal_(0).abs().max() < 0.03
