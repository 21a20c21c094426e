"""densekit's detectors against torchvision's, weights carried across: detections, masks, proposals, samples, losses."""

from __future__ import annotations

import pytest
import torch

from densekit.heads.faster_rcnn.torchvision import from_torchvision, is_torchvision_detector, to_torchvision
from densekit.types import DensekitError
from tests.heads.torchvision_detectors import (
    LOSSES,
    V2,
    anchors_of,
    as_lists,
    assert_same_detections,
    noise_batch,
    pair_of,
    proposals_of,
    recorded_losses,
)

# The box side of Mask R-CNN's second version is all of Faster R-CNN's.
DETECTORS = {
    "fasterrcnn_resnet50_fpn": ("faster_rcnn", {}),
    "maskrcnn_resnet50_fpn": ("mask_rcnn", {}),
    "maskrcnn_resnet50_fpn_v2": ("mask_rcnn", V2 | {"mask_norm": "batch"}),
}


@pytest.fixture(scope="module", params=DETECTORS)
def pair(request):
    """torchvision's detector and densekit's with the same weights."""
    head, options = DETECTORS[request.param]
    return pair_of(request.param, head, **options)


@pytest.fixture(scope="module")
def batch():
    return noise_batch()


@pytest.fixture(scope="module")
def found(pair, batch):
    """What both find; masks as the heads give them, before torchvision pastes them into the image."""
    theirs, ours = pair
    paste, theirs.transform.postprocess = theirs.transform.postprocess, lambda result, *_: result
    with torch.no_grad():
        results = ours.predict(batch, padded=True), theirs(as_lists(batch)[0])
    theirs.transform.postprocess = paste
    return results


def test_detections_are_torchvisions(found):
    ours, theirs = found
    for i, expected in enumerate(theirs):
        assert_same_detections(ours, i, expected, first=1, spread=0.1 if ours.masks is None else 0.03)


def test_masks_are_torchvisions(found):
    ours, theirs = found
    assert (ours.masks is None) == ("masks" not in theirs[0])
    for i, expected in enumerate(theirs if ours.masks is not None else ()):
        count = len(expected["boxes"])
        same = (ours.boxes[i, :count] - expected["boxes"]).abs().amax(1) <= 1e-2
        same &= ours.labels[i, :count] == expected["labels"] - 1
        assert same.float().mean() > 0.9
        masks = ours.masks[i, :count]
        assert masks.std() > 0.1
        torch.testing.assert_close(masks[same], expected["masks"][same, 0], atol=1e-4, rtol=0)


@pytest.fixture
def recorded(pair, batch):
    return recorded_losses(pair[0], batch)


def test_losses_of_the_same_samples_are_torchvisions(pair, batch, recorded):
    _, ours = pair
    expected, (anchor_sampler, proposal_sampler), proposals = recorded
    head, targets = ours.head(), batch.targets.boxes
    pyramid, regions = head.regions(ours.features(batch))
    anchors = anchors_of(anchor_sampler, regions.anchors, targets)
    mine = head.proposals(regions, batch.sizes, training=True)
    for i, boxes in enumerate(proposals):
        same = (mine.boxes[i][mine.valid[i], None] - boxes).abs().amax(-1) <= 1e-3
        assert same.any(0).all()
        assert same.any(1).all()
        assert same.diagonal().float().mean() > 0.9  # only ties change places
    samples = proposals_of(proposal_sampler, proposals, batch)
    losses, names = head.losses_of(pyramid, regions, anchors, samples), dict(LOSSES)
    if "loss_mask" in expected:
        losses |= head.mask.losses(pyramid, samples, targets, batch.sizes)
        names["mask"] = "loss_mask"
    assert set(names.values()) == set(expected)
    assert set(losses) == set(names)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[names[name]], rtol=1e-4, atol=0)


def test_state_dict_survives_the_way_there_and_back(pair):
    theirs, ours = pair
    original = theirs.state_dict()
    back = to_torchvision(ours.state_dict(), head="boxes")
    assert is_torchvision_detector(back)
    assert not is_torchvision_detector(ours.state_dict())
    assert back.keys() == original.keys()
    for key, value in back.items():
        # nothing reads the background
        background = 4 if "box_predictor.bbox_pred" in key else 1 if "mask_fcn_logits" in key else 0
        assert torch.equal(
            value[background:] if value.dim() else value, original[key][background:] if value.dim() else original[key]
        )


def test_old_key_names_and_any_head_name_load():
    state = {
        "rpn.head.conv.weight": torch.zeros(1),
        "backbone.fpn.inner_blocks.2.bias": torch.zeros(1),
        "backbone.body.layer1.0.bn1.running_var": torch.zeros(1),
        "roi_heads.mask_head.mask_fcn3.weight": torch.zeros(1),
    }
    assert list(from_torchvision(state, head="cells")) == [
        "heads.cells.rpn.head.convs.0.weight",
        "heads.cells.neck.lateral.2.0.bias",
        "backbone.layer1.0.bn1.running_var",
        "heads.cells.mask.convs.2.0.weight",
    ]


def test_foreign_keys_are_refused():
    with pytest.raises(DensekitError, match=r"'fc\.weight' is no key"):
        from_torchvision({"fc.weight": torch.zeros(1)}, head="boxes")
