"""Cells of a box pasted to pixels, against torch's grid_sample and torchvision's own pasting."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from densekit.ops.paste import paste, pasted_mask

SIZE = (40, 56)
BOXES = [
    (3.0, 5.0, 19.0, 13.0),
    (3.4, 5.7, 9.2, 30.1),
    (-8.3, -4.0, 30.6, 17.5),  # beyond the top left
    (41.7, 22.2, 70.0, 55.5),  # beyond the bottom right
    (10.2, 10.2, 11.1, 11.3),  # a pixel
    (0.0, 0.0, 56.0, 40.0),
]


def sampled(cells: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> torch.Tensor:
    """Every pixel of the image, as Detectron2 samples the cells."""
    x1, y1, x2, y2 = box
    xs = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    ys = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1)[None]
    return F.grid_sample(torch.from_numpy(cells)[None, None], grid, align_corners=False)[0, 0]


def whole(x: int, y: int, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = np.zeros(size, values.dtype)
    image[y : y + values.shape[0], x : x + values.shape[1]] = values
    return image


@pytest.mark.parametrize("box", BOXES, ids=str)
@pytest.mark.parametrize("cells", [1, 7, 28])
def test_pasting_is_grid_sample_within_the_box(box, cells):
    values = np.random.default_rng(cells).random((cells, cells), np.float32)
    expected = sampled(values, box, SIZE).numpy()
    x, y, found = paste(values, box, SIZE)
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = (xs >= box[0]) & (xs <= box[2]) & (ys >= box[1]) & (ys <= box[3])
    np.testing.assert_array_equal(whole(x, y, np.ones(found.shape, bool), SIZE), inside)
    np.testing.assert_allclose(whole(x, y, found, SIZE), np.where(inside, expected, 0), atol=2e-5)
    near = np.abs(expected - 0.5) < 1e-4
    mask = pasted_mask(values, box, SIZE)
    np.testing.assert_array_equal(whole(*mask, SIZE)[~near], (expected >= 0.5)[~near])


@pytest.mark.parametrize("box", [(3, 5, 19, 13), (0, 0, 56, 40), (40, 8, 56, 40)], ids=str)
def test_pasting_equals_torchvisions_where_its_rounding_changes_nothing(box):
    """It widens a box by a cell on each side, rounds it, and takes the last pixel to be within."""
    cells = 8
    values = np.random.default_rng(2).random((cells, cells), np.float32)
    x1, y1, x2, y2 = box
    theirs = []
    for low, high in ((x1, x2), (y1, y2)):
        middle, half = (low + high - 1) / 2, (high - low - cells / (cells + 2)) / 2
        nudge = 1e-3 if low > (high - low) / cells else -1e-3  # it rounds towards 0
        theirs.append((middle - half + nudge, middle + half + 1e-3))
    corners = torch.tensor([[theirs[0][0], theirs[1][0], theirs[0][1], theirs[1][1]]])
    expected = paste_masks_in_image(torch.from_numpy(values)[None, None], corners, SIZE)[0, 0].numpy()
    x, y, found = paste(values, box, SIZE)
    np.testing.assert_allclose(found, expected[y : y + found.shape[0], x : x + found.shape[1]], atol=1e-5)
    assert found.shape == (y2 - y1, x2 - x1)


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (9, 5, 5, 9), (-20, 3, -2, 9), (60, 3, 70, 9), (5.6, 3, 6.4, 9)], ids=str
)
def test_a_box_without_a_pixel_has_no_mask(box):
    assert pasted_mask(np.ones((28, 28), np.float32), box, SIZE).mask.size == 0


def test_a_full_box_is_full_to_its_edge():
    mask = pasted_mask(np.ones((28, 28), np.float32), (3, 5, 19, 13), SIZE)
    assert (mask.x, mask.y, mask.mask.shape) == (3, 5, (8, 16))
    assert mask.mask.all()
