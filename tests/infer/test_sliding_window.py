"""Sliding windows and test-time augmentation against plain prediction; memory; errors."""

from __future__ import annotations

import dataclasses
import resource

import numpy as np
import pytest
import torch
from torch import nn

from densekit.heads.segmentation import unet
from densekit.infer.augmented import predict_augmented
from densekit.infer.sliding_window import segment_image
from densekit.model import DenseModel
from densekit.types import Batch, Classes, Classification, DensekitError, Level, Segmentation
from tests.tools import runs

CLASSES = Classes(("sky", "road", "car"), (7, 300, 4))


class SmallBackbone(nn.Module):
    """Two convolutions of stride 2 and 4: a receptive field of a few pixels."""

    def __init__(self):
        super().__init__()
        self.levels = (Level("c1", 8, 2), Level("c2", 8, 4))
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, images):
        fine = self.first(images).relu()
        return [fine, self.second(fine).relu()]


class PixelHead(nn.Module):
    """Probabilities that depend on the pixel alone: blending must then change nothing."""

    task = "segmentation"

    def predict(self, maps, batch):
        scores = torch.stack([maps[0][:, 0], maps[0][:, 1], maps[0][:, 2]], 1).softmax(1)
        rows = [s[:, :h, :w] for s, (h, w) in zip(scores, batch.sizes.tolist())]
        return Segmentation(rows, [r.max(0).indices for r in rows])


class Pixels(nn.Module):
    levels = (Level("c0", 3, 1),)

    def forward(self, images):
        return [images]


def make_model(mode="multiclass", classes=CLASSES, head=None, backbone=None):
    torch.manual_seed(0)
    backbone = backbone or SmallBackbone()
    head = head or unet(backbone.levels, num_classes=len(classes), mode=mode)
    return DenseModel(backbone, {"masks": head}, mean=[0.5], std=[0.2], classes=classes).eval()


def make_image(height=100, width=130, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def make_batch(*images):
    height, width = (max(i.shape[d] for i in images) for d in (0, 1))
    stacked = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for row, image in zip(stacked, images):
        row[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image.transpose(2, 0, 1))
    sizes = torch.tensor([i.shape[:2] for i in images])
    return Batch(stacked, sizes, sizes, list(range(len(images))), torch.zeros(len(images), dtype=torch.int64))


@pytest.mark.parametrize(("mode", "classes"), [
    ("multiclass", CLASSES), ("multilabel", CLASSES), ("binary", Classes(("rest", "cell"), (0, 255)))
])  # fmt: skip
def test_one_window_gives_the_numbers_of_plain_prediction(mode, classes):
    model, image = make_model(mode, classes), make_image()
    plain = model.predict(make_batch(image))
    found = segment_image(model, image, window=256, probabilities=True)
    np.testing.assert_allclose(found.probabilities, plain.probabilities[0].detach().numpy(), atol=1e-5)
    np.testing.assert_array_equal(found.mask, plain.masks[0].numpy())


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("size", [(100, 130), (64, 65), (33, 200), (1, 70)])
def test_windows_join_without_a_trace_where_pixels_do_not_see_their_neighbours(size, overlap):
    model, image = make_model(head=PixelHead(), backbone=Pixels()), make_image(*size)
    plain = model.predict(make_batch(image))
    found = segment_image(model, image, window=32, overlap=overlap, batch_size=3, probabilities=True)
    np.testing.assert_allclose(found.probabilities, plain.probabilities[0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(found.mask, plain.masks[0].numpy())


def test_windows_agree_with_the_whole_image_but_for_what_their_edges_do_not_see():
    model, image = make_model(), make_image(128, 128)
    plain = model.predict(make_batch(image)).probabilities[0].detach().numpy()
    coarse, fine = (
        np.abs(segment_image(model, image, window=64, overlap=o, probabilities=True).probabilities - plain).mean()
        for o in (0.0, 0.75)
    )
    assert fine < coarse
    assert fine < 0.05


def test_masks_hold_the_data_sets_ids_in_a_type_that_fits():
    found = segment_image(make_model(), make_image(), window=64)
    assert found.probabilities is None
    assert found.mask.dtype == np.uint16
    assert set(np.unique(found.mask)) <= set(CLASSES.ids)
    layers = segment_image(make_model("multilabel"), make_image(), window=64)
    assert layers.mask.shape == (3, 100, 130)
    assert layers.mask.dtype == np.uint8


def test_flips_average_to_the_same_for_the_flipped_image():
    model, image = make_model(), make_image(64, 96)
    flips = ("none", "horizontal", "vertical", "both")
    for dims in ((1,), (0,), (0, 1)):
        straight = predict_augmented(model, make_batch(image), flips=flips)
        turned = predict_augmented(model, make_batch(np.ascontiguousarray(np.flip(image, dims))), flips=flips)
        back = turned.probabilities[0].flip([d + 1 for d in dims])
        torch.testing.assert_close(straight.probabilities[0], back, atol=1e-5, rtol=0)


def test_augmentation_is_the_mean_of_its_parts():
    model, batch = make_model(), make_batch(make_image(64, 96))
    parts = [
        predict_augmented(model, batch, flips=(flip,), scales=(scale,)).probabilities[0]
        for flip in ("none", "horizontal")
        for scale in (0.5, 1.0)
    ]
    whole = predict_augmented(model, batch, flips=("none", "horizontal"), scales=(0.5, 1.0))
    torch.testing.assert_close(whole.probabilities[0], torch.stack(parts).mean(0))
    assert torch.equal(whole.masks[0], torch.tensor(CLASSES.ids)[whole.probabilities[0].argmax(0)])
    assert (parts[0] - parts[1]).abs().max() > 1e-3


def test_no_augmentation_is_plain_prediction_bit_for_bit():
    model, batch = make_model(), make_batch(make_image(40, 50), make_image(64, 20))
    plain, found = model.predict(batch), predict_augmented(model, batch)
    for a, b in zip(plain.probabilities, found.probabilities):
        assert torch.equal(a, b)


def test_stored_maps_which_nothing_flips_are_refused():
    batch = dataclasses.replace(make_batch(make_image(64, 64)), maps={"c2": torch.zeros(1, 8, 16, 16)})
    with pytest.raises(DensekitError, match="stored features can't be flipped or scaled"):
        predict_augmented(make_model(), batch, flips=("horizontal",))


def test_padding_of_a_batch_does_not_reach_flipped_images():
    model = make_model()
    small, large = make_image(40, 50), make_image(64, 96)
    together = predict_augmented(model, make_batch(small, large), flips=("horizontal",))
    alone = predict_augmented(model, make_batch(small), flips=("horizontal",))
    torch.testing.assert_close(together.probabilities[0], alone.probabilities[0])


def test_windows_can_be_augmented():
    model, image = make_model(), make_image(64, 64)
    found = segment_image(model, image, window=128, flips=("none", "vertical"), scales=(1.0, 1.5), probabilities=True)
    want = predict_augmented(model, make_batch(image), flips=("none", "vertical"), scales=(1.0, 1.5))
    np.testing.assert_allclose(found.probabilities, want.probabilities[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 8}, "window 8"),
        ({"overlap": 1.0}, "overlap"),
        ({"batch_size": 0}, "batch size"),
        ({"flips": ("horizntal",)}, "'horizontal'"),
        ({"flips": ()}, "at least one flip"),
        ({"scales": (0.0,)}, "scale 0.0"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(DensekitError, match=message):
        segment_image(make_model(), make_image(), **options)


def test_images_that_do_not_fit_the_model_are_refused():
    with pytest.raises(DensekitError, match="4 channels"):
        segment_image(make_model(), make_image(channels=4))
    with pytest.raises(DensekitError, match="at least one pixel"):
        segment_image(make_model(), make_image(0, 5))


def test_a_head_of_another_task_is_refused():
    class Classifier(nn.Module):
        task = "classification"

        def predict(self, maps, batch):
            return Classification(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))

    with pytest.raises(DensekitError, match="segmentation head"):
        segment_image(make_model(head=Classifier()), make_image())


def memory_for_a_large_image(_: int) -> float:
    """MiB on top of the image itself."""
    model = make_model(head=PixelHead(), backbone=Pixels())
    segment_image(model, np.zeros((256, 256, 3), np.uint8))
    image = np.full((8000, 1500, 3), 200, np.uint8)  # untouched pages count or not, as the system likes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mask = segment_image(model, image, window=256, overlap=0.1, batch_size=2).mask
    assert mask.shape == (8000, 1500)
    assert mask.dtype == np.uint16
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def test_memory_for_a_large_image_stays_near_its_output():
    """The mask is 23 MiB, windows and strips some 30; probabilities of the whole image would be 137 more."""
    assert runs.apart(memory_for_a_large_image)[0] < 110
