"""Masks judged together: what the set as a whole says, causes before what follows from them."""

from __future__ import annotations

import cv2
import numpy as np

from densekit.data.masks import masks as mask_data
from densekit.doctor.examine import examine
from densekit.doctor.quick import quick_check
from tests.doctor.conftest import bad, found


def write_set(folder, masks, classes=None):
    """Images of noise and these masks, with a classes.txt."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i, mask in enumerate(masks):
        noise = np.random.default_rng(i).integers(0, 255, (*mask.shape, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), noise)
        cv2.imwrite(str(folder / "masks" / f"{i}.png"), mask)
    if classes:
        (folder / "classes.txt").write_text("\n".join(classes))
    return folder


def blob(value, seed, size=(40, 48)):
    mask = np.zeros(size, np.uint8)
    x, y = np.random.default_rng(seed).integers(8, 30, 2).tolist()
    cv2.circle(mask, (x, y), 6, value, -1)
    return mask


def look(folder):
    return examine(folder, processes=1, shown=False)


def test_objects_of_an_ignored_value_leave_one_class_and_are_told(tmp_path):
    folder = write_set(tmp_path, [blob(255, i) for i in range(6)], ["background", "cell"])
    report = look(folder)
    assert bad(report) == {"masks_of_one_class": 1}
    (defect,) = found(report, "masks_of_one_class")
    share = np.mean([blob(255, i) == 255 for i in range(6)])
    assert f"({share:.1%} of them are)" in defect.message
    assert "class_without_objects" not in {d.code for d in report.defects}
    data = mask_data(images=folder / "images", masks=folder / "masks", classes=("background", "cell"))
    assert any("is 'background' or ignored" in line for line in quick_check(data))
    named = mask_data(images=folder / "images", masks=folder / "masks", classes={"background": 0, "cell": 255})
    assert len(quick_check(named)) == 1


def test_masks_of_two_classes_are_not_told(tmp_path):
    folder = write_set(tmp_path, [blob(i % 2, i) for i in range(6)], ["background", "cell"])
    assert bad(look(folder)) == {}
    data = mask_data(images=folder / "images", masks=folder / "masks", classes=("background", "cell"))
    assert len(quick_check(data)) == 1
