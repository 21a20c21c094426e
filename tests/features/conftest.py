"""Small images, a small network, and exports of them."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from densekit.features.export import Exporter
from densekit.features.setup import Export, bare_model, plain_source
from densekit.features.shards import ShardFolder

ROOT = Path(__file__).resolve().parents[2]
SIZES = ((40, 64), (64, 40), (33, 33), (64, 64))  # (height, width), in turn


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Ten images of four sizes, two of them in a subfolder."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 10)
    return folder


@pytest.fixture(scope="session")
def network():
    """A CIFAR ResNet: levels c1 (16 channels, stride 1), c2 (16, 1), c3 (32, 2), c4 (64, 4)."""
    return make_network()


def make_network(seed=0, **options):
    model, _ = bare_model("resnet8", {}, weights=None, mean=[0.5], std=[0.25], seed=seed, **options)
    for name, buffer in model.backbone.named_buffers():  # running statistics as after training, not 0 and 1
        if name.endswith("running_mean"):
            buffer.copy_(torch.linspace(-0.1, 0.1, len(buffer)))
        if name.endswith("running_var"):
            buffer.copy_(torch.linspace(0.8, 1.2, len(buffer)))
    return model


def write_images(folder, count, size=None):
    random = np.random.default_rng(count)
    for index in range(count):
        height, width = size or SIZES[index % len(SIZES)]
        image = cv2.resize(random.integers(0, 256, (6, 6, 3), np.uint8), (width, height))
        path = folder / ("sub" if index % 5 == 4 else ".") / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)


def make_export(network, folder, *, specs=(), **options):
    """An export of a folder of images with small shards."""
    source = plain_source(folder, None, None, specs=list(specs), channels=network.channels)
    given = {
        "levels": ["c3", "c4", "pooled"],
        "views": ["none"],
        "dtype": "float32",
        "shard_images": 3,
        "batch_size": 2,
    }
    return Export(network, source, transform=list(specs), **{**given, **options})


def run_export(export, out, *, ranks=1, workers=0, finish=True):
    """Export with so many ranks, one after the other; only missing shards are made."""
    recipe = export.recipe()
    for rank in range(ranks):
        folder = ShardFolder(out, recipe, first=rank == 0)
        missing = [n for n in range(rank, recipe.shards(), ranks) if not folder.whole(n)]
        Exporter(export.source, export.extractor(), folder, boxes=export.boxes, workers=workers).run(missing)
    return folder.finish({"weights": "none", "sha256": None}) if finish else folder


def content(folder):
    """Every file of a store and its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tool(name):
    """A script's ``main``."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def with_levels(export, *levels):
    return dataclasses.replace(export, levels=list(levels))
