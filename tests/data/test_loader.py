"""Batches: a pure function of (seed, step), the same for any ranks and workers; bad images; nothing counted twice."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import densekit.data.formats.coco.file as coco_file
from densekit.data.formats.coco.coco import CocoDataset, coco
from densekit.data.formats.shapes import generate_shapes
from densekit.data.loading.batching import collate
from densekit.data.loading.loader import eval_loader, train_loader
from densekit.data.loading.sampling import BatchPlan, eval_batches, sample_random
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import IGNORE, Batch, Classes, DensekitError, Sample

SPECS = [{"name": "Resize", "short": [24, 32]}, {"name": "HorizontalFlip"}, {"name": "ColorJitter", "p": 1.0}]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    generate_shapes(out, train=22, val=2, test=2, size=40)
    return out


def make(shapes: Path, specs: list | None = None, **options) -> CocoDataset:
    return coco(
        images=shapes / "images",
        annotations=shapes / "annotations/train.json",
        transforms=Pipeline(SPECS if specs is None else specs),
        seed=3,
        **options,
    )


def same(a: Batch, b: Batch) -> bool:
    pairs = [
        (a.images, b.images),
        (a.sizes, b.sizes),
        (a.seeds, b.seeds),
        (a.targets.boxes.boxes, b.targets.boxes.boxes),
    ]
    return a.ids == b.ids and all(torch.equal(x, y) for x, y in pairs)


def take(count: int, loader) -> list[Batch]:
    return list(itertools.islice(loader, count))


class TestDataset:
    def test_it_is_built_by_name_and_says_what_it_holds(self, shapes):
        options = {"images": str(shapes / "images"), "annotations": str(shapes / "annotations/train.json")}
        data = DATASETS.build("coco", options, transforms=None, seed=0, training=True, channels=1, max_pixels=10**6)
        assert (len(data), data.task, data.classes.names[0]) == (22, "detection", "circle")
        assert data.sample(0, 0).image.shape[2] == 1
        sizes = data.file.sizes
        assert np.allclose(data.aspect_ratios(), sizes[:, 1] / sizes[:, 0])

    def test_a_sample_is_a_function_of_seed_epoch_and_index(self, shapes):
        data, again = make(shapes), make(shapes)
        first = [data.sample(e, i) for e in range(2) for i in range(5)]
        second = [again.sample(e, i) for e in reversed(range(2)) for i in reversed(range(5))][::-1]
        assert all(np.array_equal(a.image, b.image) and a.seed == b.seed for a, b in zip(first, second))
        assert len({s.seed for s in first}) == 10
        assert any(not np.array_equal(first[i].image, first[i + 5].image) for i in range(5))

    def test_boxes_are_xyxy_cut_at_the_edge_and_labels_follow_the_classes(self, shapes):
        data = make(shapes, specs=[])
        for i in range(len(data)):
            sample, rows = data.sample(0, i), data.file.annotations(i)
            x, y, w, h = data.file.boxes[rows].T
            assert np.allclose(sample.boxes, np.stack((x, y, x + w, y + h), 1), atol=1e-4)
            assert np.array_equal(sample.labels, data.file.labels[rows])
            assert np.array_equal(sample.crowd, data.file.crowd[rows])
            assert sample.image.shape[:2] == sample.original_size

    def test_a_missing_image_a_wrong_size_and_a_link_out_are_errors(self, shapes, tmp_path):
        images = tmp_path / "images"
        (images / "train").mkdir(parents=True)
        data = make(shapes)
        data.files.folder = images
        with pytest.raises(DensekitError, match="no such image"):
            data.sample(0, 0)
        name = data.file.file_names[0]
        cv2.imwrite(str(images / name), np.zeros((9, 9, 3), np.uint8))
        with pytest.raises(DensekitError, match="the image is 9 x 9 but its annotations say"):
            data.sample(0, 0)
        (images / name).unlink()
        (images / name).symlink_to(shapes / "images" / name)
        with pytest.raises(DensekitError, match="is a link out of"):
            data.sample(0, 0)
        with pytest.raises(DensekitError, match="no such image folder"):
            CocoDataset(tmp_path / "nowhere", file=data.file)

    def test_decoding_at_half_size_moves_no_box_and_hardly_a_pixel(self, shapes, monkeypatch):
        data = make(shapes, specs=[{"name": "Resize", "long": 20}])
        assert data.transforms.reduction((40, 56)) == 2
        reduced = [data.sample(0, i) for i in range(6)]
        monkeypatch.setattr(Pipeline, "reduction", lambda *_: 1)
        for i, sample in enumerate(reduced):
            full = data.sample(0, i)
            assert full.image.shape == sample.image.shape
            assert np.array_equal(full.boxes, sample.boxes)
            assert np.abs(full.image.astype(int) - sample.image).mean() < 4


class TestSampling:
    @pytest.mark.parametrize("ratios", [None, np.tile([0.7, 1.5, 1.0], 8)[:23].astype(np.float32)])
    def test_an_epoch_holds_every_image_once_but_those_that_do_not_fill_a_batch(self, ratios):
        plan = BatchPlan(23, 4, 0, ratios)
        assert plan.batches_per_epoch == 5
        for epoch in range(3):
            addresses = [a for step in range(5 * epoch, 5 * epoch + 5) for a in plan.batch(step)]
            assert {e for e, _ in addresses} == {epoch}
            assert len({i for _, i in addresses}) == 20
        assert plan.batch(0) != [(0, i) for _, i in plan.batch(5)]
        left_out = [set(range(23)) - {i for s in range(5 * e, 5 * e + 5) for _, i in plan.batch(s)} for e in range(12)]
        assert len(set.union(*left_out)) > 10

    def test_batches_hold_images_of_like_shape_as_far_as_they_go(self):
        ratios = np.where(np.arange(40) % 3, 1.5, 0.6).astype(np.float32)
        plan = BatchPlan(40, 4, 1, ratios)
        mixed = sum(len({ratios[i] > 1 for _, i in plan.batch(s)}) > 1 for s in range(10))
        assert mixed <= 1
        plain = BatchPlan(40, 4, 1, None)
        assert sum(len({ratios[i] > 1 for _, i in plain.batch(s)}) > 1 for s in range(10)) > 5

    def test_ranks_share_the_batch_that_one_rank_would_take(self):
        plan = BatchPlan(23, 4, 0)
        for step in range(12):
            assert plan.slice(step, 0, 2) + plan.slice(step, 1, 2) == plan.batch(step)
        with pytest.raises(DensekitError, match="4 images cannot be shared by 3 ranks"):
            plan.slice(0, 0, 3)

    def test_a_data_set_smaller_than_the_batch_gives_each_sample_another_address(self):
        plan = BatchPlan(3, 8, 0)
        seen = [a for step in range(4) for a in plan.batch(step)]
        assert all(len(plan.batch(step)) == 8 for step in range(4))
        assert len(set(seen)) == len(seen)
        assert {i for _, i in plan.batch(0)} == {0, 1, 2}

    def test_seeds_give_other_orders_and_other_draws(self):
        assert BatchPlan(50, 8, 0).batch(0) != BatchPlan(50, 8, 1).batch(0)
        draws = {sample_random(*address).integers(2**60) for address in itertools.product(range(3), repeat=3)}
        assert len(draws) == 27

    @pytest.mark.parametrize("world", [1, 2, 3, 7])
    def test_evaluation_deals_every_image_once_in_the_same_batches(self, world):
        ratios = np.random.default_rng(0).uniform(0.5, 2, 23).astype(np.float32)
        dealt = [eval_batches(23, 4, rank, world, ratios) for rank in range(world)]
        assert sorted(i for rank in dealt for batch in rank for i in batch) == list(range(23))
        alone = eval_batches(23, 4, 0, 1, ratios)
        assert all(batch in alone for rank in dealt for batch in rank)
        assert np.ptp(ratios[alone[0]]) < np.ptp(ratios) / 3

    def test_nothing_to_train_on_is_an_error(self):
        with pytest.raises(DensekitError, match="no images"):
            BatchPlan(0, 4, 0)
        with pytest.raises(DensekitError, match="a batch of 0"):
            BatchPlan(4, 0, 0)


class TestCollate:
    def sample(self, height: int, width: int, boxes: int, **options) -> Sample:
        rows = np.arange(boxes * 4, dtype=np.float32).reshape(-1, 4)
        labels, crowd = np.arange(boxes), np.arange(boxes) % 2 == 1
        image = np.full((height, width, 3), 9, np.uint8)
        return Sample(image, "x", (height, width), 5, boxes=rows, labels=labels, crowd=crowd, **options)

    def test_images_and_boxes_are_padded_and_valid_says_which_are_real(self):
        batch = collate([self.sample(30, 40, 3), self.sample(20, 50, 9), self.sample(8, 8, 0)], pad_to=32)
        assert batch.images.shape == (3, 3, 32, 64)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.float().sum((1, 2, 3)).tolist() == [30 * 40 * 27, 20 * 50 * 27, 64 * 27]
        assert (batch.images[0, :, :30, :40] == 9).all()
        assert batch.sizes.tolist() == [[30, 40], [20, 50], [8, 8]]
        targets = batch.targets.boxes
        assert targets.boxes.shape == (3, 16, 4)
        assert targets.valid.sum(1).tolist() == [3, 9, 0]
        assert targets.boxes[1, :9].flatten().tolist() == list(range(36))
        assert not targets.boxes[~targets.valid].any()
        assert targets.crowd[1].sum() == 4
        assert batch.truth is None
        assert batch.targets.masks is None

    def test_a_fixed_size_and_number_of_boxes_give_constant_shapes(self):
        options = {"fixed_sizes": [(48, 64)], "max_objects": 17}
        shapes = {
            (collate([s], **options).images.shape, collate([s], **options).targets.boxes.boxes.shape)
            for s in (self.sample(30, 40, 3), self.sample(48, 64, 17), self.sample(1, 1, 0))
        }
        assert shapes == {((1, 3, 48, 64), (1, 24, 4))}
        with pytest.raises(DensekitError, match="larger than fixed_size 64 x 48"):
            collate([self.sample(49, 64, 0)], **options)

    def test_of_several_fixed_sizes_the_smallest_that_holds_the_images_is_taken(self):
        options = {"fixed_sizes": [(48, 96), (64, 64), (96, 48)]}
        for sizes, padded in (
            ([(48, 64), (9, 96)], (48, 96)),
            ([(49, 64), (9, 9)], (64, 64)),
            ([(96, 8)], (96, 48)),
            ([(8, 8), (8, 8)], (64, 64)),
            ([(8, 65), (65, 8)], (96, 96)),  # each fits, in different ones
        ):
            assert collate([self.sample(*size, 0) for size in sizes], **options).images.shape[2:] == padded
        rule = (
            r"is 66 x 65 \(width x height\) .* larger than fixed_size 96 x 48 and 64 x 64 and 48 x 96; resize or crop"
        )
        with pytest.raises(DensekitError, match=rule):
            collate([self.sample(65, 66, 0)], **options)

    def test_masks_are_padded_with_the_ignored_label_and_truth_is_left_alone(self):
        first = self.sample(4, 6, 0, mask=np.ones((4, 6), np.uint8), truth=np.ones((8, 12), np.uint8))
        second = self.sample(8, 3, 0, mask=np.zeros((8, 3), np.uint8), truth=np.zeros((5, 5), np.uint8))
        batch = collate([first, second], pad_to=8)
        assert (batch.targets.masks.dtype, batch.targets.masks.shape) == (torch.int64, (2, 8, 8))
        assert (batch.targets.masks == IGNORE).sum((1, 2)).tolist() == [64 - 24, 64 - 24]
        assert [tuple(t.shape) for t in batch.truth] == [(8, 12), (5, 5)]
        planes = dataclasses.replace(first, mask=np.ones((2, 4, 6), np.uint8))
        masks = collate([planes], pad_to=8).targets.masks
        assert (masks.dtype, masks.shape, int((masks == IGNORE).sum())) == (torch.uint8, (1, 2, 8, 8), 80)

    def test_float_images_make_a_float_batch_and_labels_a_vector(self):
        sample = Sample(np.full((3, 4, 1), 7.5, np.float32), 1, (3, 4), 0, target=4)
        batch = collate([sample, dataclasses.replace(sample, target=2)], pad_to=1)
        assert batch.images.dtype == torch.float32
        assert (batch.images == 7.5).all()
        assert batch.targets.labels.tolist() == [4, 2]
        assert collate([dataclasses.replace(sample, target=None)]).targets is None
        with pytest.raises(DensekitError, match="3 channels, others of its batch 1"):
            collate([sample, self.sample(3, 4, 0)])


class TestTrainLoader:
    def test_workers_do_not_change_the_batches(self, shapes):
        data = make(shapes)
        alone = take(7, train_loader(data, batch_size=4, seed=0))
        shared = take(7, train_loader(data, batch_size=4, seed=0, workers=2))
        assert all(same(a, b) for a, b in zip(alone, shared))
        assert not same(alone[0], alone[5])

    def test_a_later_start_goes_on_where_the_run_would_be(self, shapes):
        data = make(shapes)
        whole = take(9, train_loader(data, batch_size=4, seed=0))
        rest = take(3, train_loader(data, batch_size=4, seed=0, workers=2, start=6))
        assert all(same(a, b) for a, b in zip(whole[6:], rest))

    def test_two_ranks_have_the_halves_of_the_batch_of_one(self, shapes):
        data = make(shapes)
        whole = take(4, train_loader(data, batch_size=4, seed=0, fixed_sizes=[(64, 64)]))
        halves = [
            take(4, train_loader(data, batch_size=4, seed=0, rank=r, world_size=2, fixed_sizes=[(64, 64)]))
            for r in (0, 1)
        ]
        for step, batch in enumerate(whole):
            assert batch.ids == halves[0][step].ids + halves[1][step].ids
            assert torch.equal(batch.images, torch.cat([h[step].images for h in halves]))
            assert torch.equal(batch.seeds, torch.cat([h[step].seeds for h in halves]))

    def test_fixed_shapes_are_the_same_in_every_batch(self, shapes):
        batches = take(6, train_loader(make(shapes), batch_size=3, seed=0, fixed_sizes=[(64, 64)]))
        assert len({(b.images.shape, b.targets.boxes.boxes.shape) for b in batches}) == 1

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_bad_image_is_one_line_in_the_main_process(self, spoiled, workers):
        with pytest.raises(DensekitError, match=r"000003.jpg: .*cut off") as error:
            take(10, train_loader(spoiled, batch_size=4, seed=0, workers=workers))
        assert "\n" not in str(error.value)
        assert "Traceback" not in str(error.value)

    def test_a_bad_image_can_be_skipped_and_is_listed(self, spoiled):
        loader = train_loader(spoiled, batch_size=4, seed=0, workers=2, on_bad_image="skip")
        batches = take(10, loader)
        lines = [line for b in batches for line in b.skipped]
        assert len(lines) == 2
        assert all("000003.jpg" in line for line in lines)
        assert all(len(b.ids) == 4 for b in batches)
        with_next = next(b for b in batches if b.skipped)
        assert spoiled.file.image_id(4) in with_next.ids
        again = take(10, train_loader(spoiled, batch_size=4, seed=0, on_bad_image="skip"))
        assert all(same(a, b) for a, b in zip(batches, again))

    def test_when_no_image_can_be_read_skipping_gives_up(self, shapes, tmp_path):
        data = make(shapes)
        data.files.folder = tmp_path
        with pytest.raises(DensekitError, match="22 images in a row cannot be read"):
            take(1, train_loader(data, batch_size=4, seed=0, on_bad_image="skip"))

    def test_workers_map_the_annotations_instead_of_copying_them(self, shapes, tmp_path, monkeypatch):
        monkeypatch.setenv("DENSEKIT_CACHE", str(tmp_path))
        monkeypatch.setattr(coco_file, "CACHE_FROM", 0)
        data = make(shapes)
        assert len(pickle.dumps(data.file)) < 1000
        assert not data.file.boxes.flags.owndata
        take(1, train_loader(data, batch_size=2, seed=0, workers=1))


LEAVING_EARLY = """
import os, signal, sys, time
from pathlib import Path
from densekit.data.formats.coco.coco import coco
from densekit.data.loading.loader import train_loader
shapes = Path(sys.argv[1])
loader = train_loader(
    coco(images=shapes / "images", annotations=shapes / "annotations/train.json"), batch_size=2, seed=0, workers=2
)
next(loader)
signal.signal(signal.SIGTERM, lambda *_: None)  # as a run that wants to finish its step
os.killpg(0, signal.SIGTERM)
time.sleep(0.2)
print(sum(len(next(loader).ids) for _ in range(12)))
"""


def test_workers_outlive_a_signal_to_the_group_and_end_with_the_script(shapes):
    script = [sys.executable, "-c", LEAVING_EARLY, str(shapes)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, start_new_session=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "24\n", "")


@pytest.fixture
def spoiled(shapes, tmp_path) -> CocoDataset:
    """A data set whose fourth image is cut off."""
    data = make(shapes)
    (tmp_path / "train").mkdir()
    for name in data.file.file_names:
        content = (shapes / "images" / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-200] if name.endswith("000003.jpg") else content)
    data.files.folder = tmp_path
    return data


class TestEvalLoader:
    def test_every_image_comes_once_and_again_in_the_next_round(self, shapes):
        loader = eval_loader(make(shapes, specs=[]), batch_size=5, workers=2)
        for _ in range(2):
            batches = list(loader)
            assert len(batches) == len(loader) == 5
            assert len({i for b in batches for i in b.ids}) == sum(len(b.ids) for b in batches) == 22

    def test_ranks_share_the_images_and_make_the_same_batches(self, shapes):
        data = make(shapes, specs=[])
        alone = {tuple(b.ids): b for b in eval_loader(data, batch_size=5)}
        for rank in range(3):
            for batch in eval_loader(data, batch_size=5, rank=rank, world_size=3):
                assert same(batch, alone.pop(tuple(batch.ids)))
        assert not alone

    def test_more_ranks_than_batches_leave_some_with_nothing(self, shapes):
        loader = eval_loader(make(shapes), batch_size=22, rank=1, world_size=2)
        assert (len(loader), list(loader)) == (0, [])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_bad_image_is_an_error_or_left_out_and_listed(self, spoiled, workers):
        with pytest.raises(DensekitError, match=r"000003\.jpg"):
            list(eval_loader(spoiled, batch_size=4, workers=workers))
        for batch_size in (1, 4):
            batches = list(eval_loader(spoiled, batch_size=batch_size, workers=workers, on_bad_image="skip"))
            assert sum(len(b.ids) for b in batches) == 21
            assert [("000003.jpg" in line) for b in batches for line in b.skipped] == [True]

    def test_when_no_image_can_be_read_it_is_an_error(self, shapes, tmp_path):
        data = make(shapes)
        data.files.folder = tmp_path
        with pytest.raises(DensekitError, match="not one image could be read"):
            list(eval_loader(data, batch_size=4, on_bad_image="skip"))


class Labels:
    """A data set that does not know its shapes."""

    task = "classification"
    classes = Classes(("a", "b"), (0, 1))

    def __len__(self) -> int:
        return 5

    def sample(self, epoch: int, index: int) -> Sample:
        return Sample(np.zeros((8, 8, 1), np.uint8), index, (8, 8), epoch, target=index % 2)

    def aspect_ratios(self) -> None:
        return None


def test_data_sets_that_do_not_know_their_shapes_load_too():
    assert take(3, train_loader(Labels(), batch_size=2, seed=0))[2].seeds.tolist() == [1, 1]
    assert [b.ids for b in eval_loader(Labels(), batch_size=3)] == [[0, 1, 2], [3, 4]]
