"""Evaluation puts images of one canvas together, where the data set knows their sizes."""

from __future__ import annotations

import numpy as np

from densekit.data.formats.coco.coco import coco
from densekit.data.formats.coco.coco_masks import coco_masks
from densekit.data.formats.shapes import generate_shapes
from densekit.data.loading.loader import eval_loader
from densekit.data.transforms.pipeline import Pipeline
from densekit.types import Classes, Sample


class Photos:
    """A data set that knows its sizes."""

    task = "classification"
    classes = Classes(("a", "b"), (0, 1))
    transforms = Pipeline([{"name": "Resize", "short": 64, "long": 128}], training=False)
    files = ((60, 90), (90, 60), (120, 180), (60, 61), (180, 120))

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, epoch: int, index: int) -> Sample:
        height, width = self.files[index]
        image = np.zeros((height, width, 1), np.uint8)
        return self.transforms(Sample(image, index, (height, width), 0, target=0), np.random.default_rng(0))

    def seen_sizes(self):
        return self.transforms.sizes(np.array(self.files))


def test_images_of_one_canvas_are_evaluated_together():
    data = Photos()
    seen = [data.sample(0, i).image.shape[:2] for i in range(len(data))]
    assert data.seen_sizes().tolist() == [list(size) for size in seen]
    batches = list(eval_loader(data, batch_size=2))
    assert [b.ids for b in batches] == [[0, 2], [3, 1], [4]]  # 64 x 96; 64 x 96 and 96 x 64; 96 x 64
    ranks = [[b.ids for b in eval_loader(data, batch_size=2, rank=rank, world_size=2)] for rank in range(2)]
    assert ranks == [[[0, 2], [4]], [[3, 1]]]


def test_sizes_after_the_transforms_come_with_coco_and_its_masks(tmp_path):
    generate_shapes(tmp_path / "set", train=6, val=1, test=1, size=40)
    files = {"images": tmp_path / "set/images", "annotations": tmp_path / "set/annotations/train.json"}
    specs = [{"name": "Resize", "long": 64}]
    data = coco(**files, transforms=Pipeline(specs))
    assert data.seen_sizes().tolist() == [list(data.sample(0, i).image.shape[:2]) for i in range(len(data))]
    segments = coco_masks(**files, transforms=Pipeline(specs))
    assert segments.seen_sizes().tolist() == data.seen_sizes().tolist()
