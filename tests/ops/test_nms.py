"""Suppression over a batch against torchvision's, image by image."""

from __future__ import annotations

import pytest
import torch
import torchvision

from densekit.ops.nms import first_kept, greedy_nms, soft_nms
from densekit.ops.tiled_nms import tiled_nms


@pytest.mark.parametrize("method", ["kernel", "tiles"])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
@pytest.mark.parametrize("grouped", [False, True])
def test_greedy_suppression_is_torchvisions(method, threshold, grouped, random_boxes):
    boxes = random_boxes(3, 200)
    groups = torch.arange(600).reshape(3, 200) % 4 if grouped else None
    valid = torch.rand(3, 200, generator=torch.Generator().manual_seed(0)) > 0.2
    kept = greedy_nms(boxes, valid, threshold, groups=groups, method=method)
    scores = torch.arange(200, 0, -1).float()
    for i in range(3):
        real = valid[i].nonzero()[:, 0]
        ids = groups[i, real] if grouped else torch.zeros(len(real))
        expected = torchvision.ops.batched_nms(boxes[i, real], scores[real], ids, threshold)
        assert torch.equal(kept[i].nonzero()[:, 0], real[expected])
    assert kept.any(1).all()


@pytest.mark.parametrize("method", ["kernel", "tiles"])
@pytest.mark.parametrize("parts", [[200], [120, 30, 50], [199, 1]])
@pytest.mark.parametrize("grouped", [False, True])
def test_parts_ignore_one_another(method, parts, grouped, random_boxes):
    boxes, levels = random_boxes(3, 200), torch.arange(len(parts)).repeat_interleave(torch.tensor(parts))
    groups = torch.arange(600).reshape(3, 200) % 4 if grouped else torch.zeros(3, 200, dtype=torch.int64)
    valid = torch.rand(3, 200, generator=torch.Generator().manual_seed(0)) > 0.2
    valid[1, : parts[0]] = False  # a level without a box
    kept = greedy_nms(boxes, valid, 0.3, groups=groups if grouped else None, parts=parts, method=method)
    scores = torch.arange(200, 0, -1).float()
    for i in range(3):
        real = valid[i].nonzero()[:, 0]
        expected = torchvision.ops.batched_nms(boxes[i, real], scores[real], (levels * 4 + groups[i])[real], 0.3)
        assert torch.equal(kept[i].nonzero()[:, 0], real[expected.sort().values])


@pytest.mark.parametrize("method", ["kernel", "tiles"])
@pytest.mark.parametrize("count", [30, 200, 2000])
def test_a_chain_of_suppressions_is_followed_to_its_end(method, count):
    left = torch.arange(float(count)) * 4  # each overlaps the next by 6 / 14, and the one after that by 2 / 18
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], dim=-1)
    kept = greedy_nms(boxes[None], torch.ones(1, count, dtype=torch.bool), 0.3, method=method)
    expected = torchvision.ops.nms(boxes, torch.arange(count, 0, -1).float(), 0.3)
    assert torch.equal(kept[0].nonzero()[:, 0], expected.sort().values)
    assert kept[0].tolist() == [True, False] * (count // 2)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
@pytest.mark.parametrize("count", [1, 7, 8, 127, 137, 900])
def test_tiles_are_torchvisions_on_chains_in_a_random_order(threshold, count):
    generator = torch.Generator().manual_seed(count)
    left = torch.rand(2, count, generator=generator) * count * 2
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], dim=-1)
    groups = torch.randint(0, 2, (2, count), generator=generator)
    valid = torch.rand(2, count, generator=generator) > 0.1
    kept = greedy_nms(boxes, valid, threshold, groups=groups, method="tiles")
    for i in range(2):
        real = valid[i].nonzero()[:, 0]
        scores = torch.arange(len(real), 0, -1).float()
        expected = torchvision.ops.batched_nms(boxes[i, real], scores, groups[i, real], threshold)
        assert torch.equal(kept[i].nonzero()[:, 0], real[expected.sort().values])


def test_tiles_compile_whole_and_read_no_value():
    boxes = torch.rand(2, 40, 2)
    boxes, valid = torch.cat([boxes, boxes + 0.2], -1), torch.rand(2, 40) > 0.2
    compiled = torch.compile(greedy_nms, fullgraph=True, backend="eager")
    options = {"threshold": 0.3, "parts": [30, 10], "method": "tiles"}
    assert torch.equal(compiled(boxes, valid, **options), greedy_nms(boxes, valid, **options))
    meta = tiled_nms(boxes.to("meta"), valid.to("meta"), valid.long().to("meta"), 0.3)  # values are not known there
    assert meta.shape == (2, 40)


def test_a_crowded_cluster_is_decided_alike_by_both_methods():
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(1, 1000, 2, generator=generator) * 8 + 100
    half = torch.exp(torch.randn(1, 1000, 2, generator=generator) * 0.2 + 3)
    boxes, valid = torch.cat([center - half, center + half], dim=-1), torch.ones(1, 1000, dtype=torch.bool)
    kept = [greedy_nms(boxes, valid, 0.7, method=method) for method in ("kernel", "tiles")]
    assert torch.equal(*kept)
    assert 10 < kept[0].sum() < 500


def slow_soft_nms(boxes, scores, decay, threshold, sigma):
    """Bodla et al. 2017, figure 3, as written."""
    boxes, scores = boxes.tolist(), scores.tolist()
    found = []
    while boxes:
        best = max(range(len(scores)), key=scores.__getitem__)
        box, score = boxes.pop(best), scores.pop(best)
        found.append((box, score))
        for i, other in enumerate(boxes):
            overlap = torchvision.ops.box_iou(torch.tensor([box]), torch.tensor([other])).item()
            if decay == "gaussian":
                scores[i] *= torch.exp(torch.tensor(-(overlap**2) / sigma)).item()
            elif overlap > threshold:
                scores[i] *= 1 - overlap
    return found


@pytest.mark.parametrize("decay", ["linear", "gaussian"])
def test_soft_suppression_is_the_papers(decay, random_boxes):
    boxes = random_boxes(2, 30)
    scores = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    place, decayed = soft_nms(boxes, scores, 20, decay=decay, threshold=0.3)
    for i in range(2):
        for k, (box, score) in enumerate(slow_soft_nms(boxes[i], scores[i], decay, 0.3, 0.5)[:20]):
            torch.testing.assert_close(boxes[i, place[i, k]], torch.tensor(box))
            torch.testing.assert_close(decayed[i, k], torch.tensor(score), atol=1e-5, rtol=0)


def test_soft_suppression_leaves_other_groups_alone(random_boxes):
    boxes = random_boxes(1, 1).expand(1, 4, 4)
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    _, decayed = soft_nms(boxes, scores, 4, decay="gaussian", groups=torch.tensor([[0, 1, 2, 3]]))
    torch.testing.assert_close(decayed, scores)
    _, decayed = soft_nms(boxes, scores, 4, decay="gaussian")
    assert (decayed[0, 1:] < 0.12).all()


def test_first_kept_are_in_order_and_padded():
    kept = torch.tensor([[False, True, True, False, True], [False] * 5])
    place, filled = first_kept(kept, 2)
    assert place.tolist() == [[1, 2], [0, 0]]
    assert filled.tolist() == [[True, True], [False, False]]
    place, filled = first_kept(kept, 7)
    assert place[0].tolist() == [1, 2, 4, 0, 0, 0, 0]
    assert filled.sum(1).tolist() == [3, 0]
