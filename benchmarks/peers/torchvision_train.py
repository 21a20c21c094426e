"""What torchvision's detection reference does until its first training step, for ``first_step.py``.

    python benchmarks/peers/torchvision_train.py IMAGES ANNOTATIONS --side 320 --batch 2 --workers 2

The same parts in the same order as ``references/detection/train.py`` of torchvision with ``--use-v2`` and its other
defaults: ``CocoDetection`` (pycocotools), images without a usable box dropped, groups of aspect ratios, a batch sampler
over the groups, ``fasterrcnn_resnet50_fpn`` (random weights), SGD. Prints one line of JSON after the first update.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.transforms import v2


class GroupedBatches(BatchSampler):
    """Batches whose images are all wide or all tall, in random order."""

    def __init__(self, sampler: RandomSampler, groups: list[int], batch_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=True)
        self.groups = groups

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[int, list[int]] = collections.defaultdict(list)
        for index in self.sampler:
            some = waiting[self.groups[index]]
            some.append(index)
            if len(some) == self.batch_size:
                yield list(some)
                some.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("annotations")
    parser.add_argument("--side", type=int, default=800)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    data = with_boxes(dataset(args.images, args.annotations))
    sampler = GroupedBatches(RandomSampler(data), groups(data), args.batch)
    loader: DataLoader[Any] = DataLoader(data, batch_sampler=sampler, num_workers=args.workers, collate_fn=collate)
    model = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, min_size=args.side, max_size=1333
    ).to(args.device)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.001, momentum=0.9, weight_decay=1e-4)
    images, targets = next(iter(loader))
    model.train()
    boxes = [{name: target[name].to(args.device) for name in ("boxes", "labels")} for target in targets]
    losses = model([image.to(args.device) for image in images], boxes)
    loss = sum(losses.values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(json.dumps({"loss": loss.item(), "time": time.time(), "images": len(data)}), flush=True)


def dataset(images: str, annotations: str) -> Any:
    to_float = v2.ToDtype(torch.float32, scale=True)
    transforms = v2.Compose(
        [v2.ToImage(), v2.RandomHorizontalFlip(0.5), to_float, v2.ConvertBoundingBoxFormat("XYXY"),
         v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
    )  # fmt: skip
    data = CocoDetection(images, annotations, transforms=transforms)
    return wrap_dataset_for_transforms_v2(data, target_keys=["boxes", "labels", "image_id"])


def with_boxes(data: Any) -> Subset[Any]:
    """The images that have an object wider and higher than a pixel."""
    kept = []
    for index, image_id in enumerate(data.ids):
        rows = data.coco.loadAnns(data.coco.getAnnIds(imgIds=image_id, iscrowd=None))
        if any(min(row["bbox"][2:]) > 1 for row in rows):
            kept.append(index)
    return Subset(data, kept)


def groups(data: Any, factor: int = 3) -> list[int]:
    """The group of each image: its aspect ratio among bins that are even in its logarithm."""
    edges = [2 ** (k / factor) for k in range(-factor, factor + 1)]
    ratios = []
    for index in data.indices:
        size = data.dataset.coco.imgs[data.dataset.ids[index]]
        ratios.append(size["width"] / size["height"])
    return [bisect.bisect_right(edges, ratio) for ratio in ratios]


def collate(samples: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*samples))


if __name__ == "__main__":
    main()
