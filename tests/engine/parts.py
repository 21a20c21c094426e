"""Every head with options that take paths of their own, on a small backbone, with a batch to learn from."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from densekit.model import DenseModel
from densekit.registry import BACKBONES, HEADS
from densekit.types import Batch, BoxTargets, Classes, InstanceMasks, Level, Targets

SIDE, IMAGES, OBJECTS = 64, 2, 5

SMALL = {"channels": 16, "box_head_width": 16, "samples": 16, "rpn_samples": 16, "nms_candidates": 64}
SMALL |= {"rpn_before_nms": (64, 64), "rpn_after_nms": (32, 32), "max_detections": 10}
FASTER_RCNN = [
    {},
    {"neck": "c5", "box_head": "four_conv_fc", "box_head_norm": "group", "box_loss": "giou", "class_loss": "focal"},
    {
        "box_head": "four_conv_fc",
        "box_head_norm": "batch",
        "neck_norm": "batch",
        "rpn_convs": 2,
        "rpn_box_loss": "ciou",
        "class_loss": "seesaw",
        "nms_class_agnostic": True,
        "rpn_score_threshold": 0.1,
    },
    {"class_agnostic_boxes": True, "box_loss": "diou", "nms": "soft_linear", "roi_align": "table", "aligned": True},
    {
        "box_head": "four_conv_fc",
        "box_head_norm": "frozen",
        "class_loss": "federated",
        "nms": "soft_gaussian",
        "roi_align": "kernel",
    },
]
AS_IT_IS = {name: value for name, value in SMALL.items() if name != "channels"}
LAST_STAGE = {name: value for name, value in AS_IT_IS.items() if name != "box_head_width"} | {"neck": "c4"}
MASK_RCNN = [
    {},
    {"class_agnostic_masks": True, "mask_norm": "batch", "aligned": True, "nms": "soft_linear"},
    {"mask_norm": "group", "mask_convs": 1, "neck": "c5", "roi_align": "kernel"},
]
DENSE = {"channels": 16, "convs": 2, "candidates": 32, "max_detections": 10}
RETINANET = [{}, {"norm": "group", "box_loss": "giou", "coarse_from": "c5", "nms": "soft_linear"}]
FCOS = [{}, {"norm": "none", "box_loss": "diou", "offset": 0.5, "nms_class_agnostic": True}]
SEGMENTERS = [
    ("unet", {"decoder_channels": (16, 16, 8, 8, 8)}),
    (
        "unet",
        {"decoder_channels": (32, 32, 16, 16, 16), "attention": "scse", "interpolation": "bilinear", "norm": "group"},
    ),
    ("unet_plus_plus", {"decoder_channels": (16, 16, 8, 8, 8)}),
    ("manet", {"decoder_channels": (16, 16, 8, 8, 8)}),
    ("linknet", {}),
    ("fpn", {"pyramid_channels": 16, "segmentation_channels": 32, "merge": "cat", "interpolation": "bilinear"}),
    ("fpn", {"pyramid_channels": 16, "segmentation_channels": 32}),
    ("pspnet", {"decoder_channels": 16, "auxiliary_weight": 0.4}),
    ("pan", {}),
    ("pan", {"interpolation": "nearest"}),
    ("deeplab_v3", {"decoder_channels": 16}),
    ("deeplab_v3_plus", {"decoder_channels": 16}),
    ("upernet", {"decoder_channels": 16}),
    ("linknet", {"losses": {"cross_entropy": 1.0, "label_smoothing": 0.1, "class_weights": (1.0, 2.0, 0.5)}}),
    ("linknet", {"losses": {"lovasz": 1.0, "dice": 1.0, "jaccard": 1.0, "tversky": 1.0, "focal": 1.0}}),
    ("linknet", {"mode": "multilabel", "losses": {"bce": 1.0, "positive_weight": 2.0, "lovasz": 1.0, "focal": 1.0}}),
]
MASKS = {"mask_convs": 2, "mask_channels": 8, "mask_pool_size": 4}
SMALL_MASKS = SMALL | MASKS
CASCADE = [
    ("cascade_mask_rcnn", SMALL_MASKS | {"box_head": "four_conv_fc", "box_head_norm": "group", "box_loss": "giou"}),
]
CLASSIFIERS = [{}, {"pool": "max", "mixup": 0.2, "dropout": 0.5, "label_smoothing": 0.1}]
CASES = [
    *(("faster_rcnn", SMALL | options, "boxes") for options in FASTER_RCNN),
    ("faster_rcnn", AS_IT_IS | {"neck": "dc5"}, "boxes"),
    ("mask_rcnn", LAST_STAGE | MASKS, "boxes"),
    *((head, options, "boxes") for head, options in CASCADE),
    *(("retinanet", DENSE | options, "boxes") for options in RETINANET),
    *(("fcos", DENSE | options, "boxes") for options in FCOS),
    *((head, options, "masks") for head, options in SEGMENTERS),
    *(("mask_rcnn", SMALL_MASKS | options, "boxes") for options in MASK_RCNN),
    *(("classifier", options, "labels") for options in CLASSIFIERS),
]


class Stages(nn.Module):
    """One convolution a stage, with the strides of a ResNet; the last of all five can be dilated."""

    def __init__(self, count: int = 5, *, dilated: bool = False) -> None:
        super().__init__()
        channels = [3, 8, 8, 16, 16, 32][: count + 1]
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(channels))
        if dilated:
            self.stages[-1] = nn.Conv2d(16, 32, 3, padding=2, dilation=2)
        last = Level(f"c{count}", channels[-1], 16 if dilated else 2**count, self.last_stage)
        self.levels = (*(Level(f"c{i}", channels[i], 2**i) for i in range(1, count)), last)

    def forward(self, images):
        maps = [images]
        for stage in self.stages[: len(self.levels)]:
            maps.append(stage(maps[-1]).relu())
        return maps[1:]

    def last_stage(self, x):
        return self.stages[-1](x).relu()

    def leave_last_stage(self):
        self.levels = self.levels[:-1]


def batch_on(device, kind, images=IMAGES):
    boxes = torch.tensor([4.0, 8.0, 40.0, 50.0]).repeat(images, OBJECTS, 1) + torch.arange(OBJECTS)[:, None]
    none = torch.zeros(images, OBJECTS, dtype=torch.bool)
    corners = boxes.to(torch.int64)
    cuts = torch.cat([corners[..., :2], corners[..., 2:] - corners[..., :2]], -1)
    pixels = cuts[..., 2:].prod(-1).flatten()
    starts = (pixels.cumsum(0) - pixels).view(images, OBJECTS)
    masks = InstanceMasks(torch.arange(int(pixels.sum())).remainder(3).gt(0).to(torch.uint8), starts, cuts)
    generator = torch.Generator().manual_seed(0)
    targets = {
        "boxes": BoxTargets(boxes, torch.zeros(images, OBJECTS, dtype=torch.int64), none, ~none, masks),
        "masks": torch.randint(0, 3, (images, SIDE, SIDE), generator=generator),
        "labels": torch.arange(images) % 3,
    }
    pixels = torch.randint(0, 256, (images, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    sizes = torch.full((images, 2), SIDE)
    batch = Batch(pixels, sizes, sizes, list(range(images)), torch.arange(images), Targets(**{kind: targets[kind]}))
    return batch.to(device, non_blocking=False)


def model_on(device, head, options, backbone=None, stages=5):
    torch.manual_seed(0)
    trunk = BACKBONES.build(backbone, {}) if backbone else Stages(stages, dilated=options.get("neck") == "dc5")
    built = HEADS.build(head, options, trunk.levels, num_classes=3)
    classes = Classes(("a", "b", "c"), (0, 1, 2))
    return DenseModel(trunk, {"head": built}, mean=(0.5,) * 3, std=(0.25,) * 3, classes=classes).to(device)
