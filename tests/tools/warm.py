"""Imported by the process that test runs are forked from: everything slow, before the fork."""

import albumentations  # noqa: F401
import segmentation_models_pytorch  # noqa: F401
import torch
import torchvision  # noqa: F401

import densekit.build
import densekit.forecast.fit
import densekit.infer.samples
import densekit.metrics.accuracy
import densekit.metrics.coco
import densekit.metrics.segmentation
import densekit.run
import densekit.show.curves  # noqa: F401
from densekit.registry import BACKBONES, DATASETS, HEADS

torch.set_num_threads(1)
for registry in (BACKBONES, DATASETS, HEADS):
    registry.names()
