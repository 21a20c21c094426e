"""Whole detectors of detectron2: its names, its last class for the background, its order of anchors and of columns."""

from __future__ import annotations

import pickle

import pytest
import torch

from densekit.backbones.weights import load_backbone_weights
from densekit.errors import DensekitError
from densekit.model import DenseModel
from densekit.registry import HEADS
from densekit.types import Classes
from densekit.whole_weights import load_whole
from tests.backbones.test_detectron2_weights import as_detectron2
from tests.heads.test_single_map_necks import trunk

CLASSES = Classes(("a", "b", "c"), (4, 1, 9))
SIZES, RATIOS = [16.0, 32.0], [0.5, 1.0, 2.0]
LAYERS = {
    "neck.lateral.{i}.0": "backbone.fpn_lateral{i}",
    "neck.output.{i}.0": "backbone.fpn_output{i}",
    "rpn.head.convs.0": "proposal_generator.rpn_head.conv",
    "rpn.head.objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn.head.deltas": "proposal_generator.rpn_head.anchor_deltas",
    "roi.box_head.fc1": "roi_heads.box_head.fc1",
    "roi.box_head.fc2": "roi_heads.box_head.fc2",
    "roi.scores": "roi_heads.box_predictor.cls_score",
    "roi.deltas": "roi_heads.box_predictor.bbox_pred",
    "mask.convs.0.0": "roi_heads.mask_head.mask_fcn1",
    "mask.upsample": "roi_heads.mask_head.deconv",
    "mask.logits": "roi_heads.mask_head.predictor",
}


def model_of(head, *, backbone=None, **options):
    torch.manual_seed(0)
    body = trunk(norm="frozen", **(backbone or {}))
    built = HEADS.build(head, options, body.levels, num_classes=len(CLASSES))
    model = DenseModel(body, {"boxes": built}, mean=(0.4,), std=(0.25,), classes=CLASSES)
    for value in model.state_dict().values():
        if value.is_floating_point() and value.dim() < 4:
            value.copy_(torch.rand_like(value))
    return model


def renamed(key):
    """A key of the model as detectron2 has it."""
    name, _, kind = key.rpartition(".")
    for number in range(4):
        for ours, theirs in LAYERS.items():
            if name == "heads.boxes." + ours.format(i=number):
                return f"{theirs.format(i=number + 2)}.{kind}"
    return key


def exported(model, neck):
    """The weights in detectron2's layout: of each tensor the rows and columns that it has, one by one."""
    found = {
        "pixel_mean": torch.zeros(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(6, 4),
    }
    head = model.head()
    sizes = len(SIZES) if neck in ("c4", "dc5") else 1
    for key, value in model.state_dict().items():
        name = renamed(key)
        if key.startswith("backbone."):
            inner = as_detectron2(key.removeprefix("backbone."))
            place = {"fpn": "backbone.bottom_up.", "c4": "backbone.", "dc5": "backbone."}[neck]
            name = ("roi_heads." if neck == "c4" and inner.startswith("res5") else place) + inner
        elif ".scores." in key:  # the background is the last class
            value = torch.stack([*value[1:], value[0]])
        elif (
            ".rpn.head.objectness." in key
        ):  # an anchor's place there is 3 * size + ratio, here it is sizes * ratio + size
            value = torch.stack([value[sizes * ratio + size] for size in range(sizes) for ratio in range(3)])
        elif ".rpn.head.deltas." in key:
            value = torch.cat(
                [value[4 * a : 4 * a + 4] for s in range(sizes) for a in [sizes * r + s for r in range(3)]]
            )
        elif key.endswith("box_head.fc1.weight"):  # channels, rows, columns
            side = head.roi.pool_size
            value = torch.stack([row.view(side * side, -1).T.flatten() for row in value])
        elif key in ("mean", "std"):
            continue
        found[name] = value.clone()
    return found


NECKS = [
    ("faster_rcnn", "c4", {}, {"anchor_sizes": [SIZES]}),
    ("mask_rcnn", "c4", {}, {"anchor_sizes": [SIZES], "mask_convs": 0, "mask_channels": 8, "mask_pool_size": 7}),
    ("faster_rcnn", "dc5", {"output_stride": 16}, {"anchor_sizes": [SIZES], "box_head_width": 4, "pool_size": 3}),
    ("mask_rcnn", "fpn", {}, {"channels": 8, "box_head_width": 4, "mask_convs": 1, "mask_channels": 4}),
]


@pytest.mark.parametrize(("head", "neck", "backbone", "options"), NECKS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_detector_of_detectron2_gives_every_weight(head, neck, backbone, options, tmp_path):
    source = model_of(head, neck=neck, backbone=backbone, **options)
    arrays = {key: value.numpy() for key, value in exported(source, neck).items()}
    assert not any(key.startswith("heads.") for key in arrays)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, 2))
    target = model_of(head, neck=neck, backbone=backbone, **options)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    report = load_whole(target, str(path), bgr=False)
    assert report[0] == f"all weights from {path}"
    assert "names of detectron2" in report[1]
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
    if neck == "c4":
        load_whole(target, str(path), bgr=True)
        assert torch.equal(target.backbone.conv1.weight, source.backbone.conv1.weight.flip(1))
        load_backbone_weights(target.backbone, str(path))
        assert torch.equal(target.backbone.conv1.weight, source.backbone.conv1.weight)
        assert torch.equal(target.backbone.layer4[1].conv2.weight, source.backbone.layer4[1].conv2.weight)


def test_a_backbone_takes_the_last_stage_of_a_detector_on_c4(tmp_path):
    source = model_of("faster_rcnn", neck="c4", anchor_sizes=[SIZES])
    torch.save({"model": exported(source, "c4")}, tmp_path / "c4.pth")
    target = model_of("faster_rcnn", neck="fpn", channels=8).backbone
    torch.nn.init.zeros_(target.layer4[0].conv1.weight)
    assert not load_backbone_weights(target, str(tmp_path / "c4.pth")).missing
    assert torch.equal(target.layer4[0].conv1.weight, source.backbone.layer4[0].conv1.weight)


def test_every_stage_of_a_cascade_finds_its_weights(tmp_path):
    source = model_of("cascade_rcnn", neck="fpn", channels=8, box_head_width=4, pool_size=3)
    found = {}
    for key, value in exported(source, "fpn").items():
        key = key.replace("roi_heads.box_head.", "roi_heads.box_head.0.").replace("box_predictor.", "box_predictor.0.")
        for stage in (0, 1):
            before = f"heads.boxes.cascade.stages.{stage}."
            if key.startswith(before):
                inner = key.removeprefix(before).replace("scores", "cls_score").replace("deltas", "bbox_pred")
                part = "box_head" if inner.startswith("box_head") else "box_predictor"
                key = f"roi_heads.{part}.{stage + 1}.{inner.removeprefix('box_head.')}"
        found[key] = value
    torch.save(found, tmp_path / "cascade.pth")
    target = model_of("cascade_rcnn", neck="fpn", channels=8, box_head_width=4, pool_size=3)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    load_whole(target, str(tmp_path / "cascade.pth"))
    assert all(torch.equal(target.state_dict()[key], value) for key, value in source.state_dict().items())


def test_other_classes_heads_and_keys_are_refused_in_one_line(tmp_path):
    source = model_of("faster_rcnn", neck="fpn", channels=8, box_head_width=4)
    state = exported(source, "fpn")
    torch.save(state, tmp_path / "fpn.pth")
    more = {**state, "roi_heads.box_predictor.cls_score.weight": torch.zeros(81, 4)}
    torch.save(more, tmp_path / "coco.pth")
    torch.save({**state, "roi_heads.keypoint_head.score.weight": torch.zeros(1)}, tmp_path / "keypoints.pth")
    retinanet = model_of("retinanet", channels=8, convs=1)
    for model, name, message in (
        (
            source,
            "coco.pth",
            "the detector tells 80 classes, the data set has 3; use the data set that it was trained on",
        ),
        (source, "keypoints.pth", r"'roi_heads.keypoint_head.score.weight' is no key of detectron2's Faster"),
        (retinanet, "fpn.pth", "a two-stage detector of detectron2, but the head 'boxes' is none"),
        (model_of("faster_rcnn", neck="c5", channels=8, box_head_width=4), "fpn.pth", "of another model"),
    ):
        with pytest.raises(DensekitError, match=message) as error:
            load_whole(model, str(tmp_path / name))
        assert "\n" not in str(error.value)
