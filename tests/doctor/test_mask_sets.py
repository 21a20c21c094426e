"""Masks judged together: what the set as a whole says, causes before what follows from them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from densekit.data.formats.masks.masks import masks as mask_data
from densekit.doctor.examine import examine
from densekit.doctor.quick import quick_check
from densekit.errors import DensekitError
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
    with pytest.raises(DensekitError, match=r"classes: \{background: 0, cell: 255\}"):
        quick_check(data)
    named = mask_data(images=folder / "images", masks=folder / "masks", classes={"background": 0, "cell": 255})
    assert quick_check(named) == []


def test_masks_of_two_classes_are_not_told(tmp_path):
    folder = write_set(tmp_path, [blob(i % 2, i) for i in range(6)], ["background", "cell"])
    assert bad(look(folder)) == {}
    data = mask_data(images=folder / "images", masks=folder / "masks", classes=("background", "cell"))
    assert quick_check(data) == []


def instances(count, seed, size=(64, 96)):
    """Objects that are numbered from 1 on, each in one piece."""
    mask, random = np.zeros(size, np.uint16), np.random.default_rng(seed)
    cells = random.permutation(24)[:count]
    for number, cell in enumerate(cells, 1):
        centre = (int(cell % 6) * 16 + 8, int(cell // 6) * 16 + 8)
        cv2.circle(mask, centre, int(random.integers(3, 8)), number, -1)
    return mask


def scattered(seed, size=(64, 96)):
    """Classes 0 to 7 in many regions each, and not all of them in every mask."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 8, (8, 12))
    coarse[coarse == random.integers(1, 8)] = 0
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8)


@pytest.mark.parametrize("classes", [None, ["background", "cell"], [f"class {i}" for i in range(30)]])
def test_masks_that_number_their_objects_are_named_once(tmp_path, classes):
    counts = [5, 9, 14, 20, 7, 11, 17, 23, 6, 12]
    folder = write_set(tmp_path, [instances(n, n) for n in counts], classes)
    report = look(folder)
    assert bad(report) == {"mask_instances": 1}
    (defect,) = found(report, "mask_instances")
    assert "10 of 10 masks number their objects 1, 2, 3, ... up to 23: instances" in defect.message
    assert "merge the values" in defect.kind.remedy


@pytest.mark.parametrize("classes", [None, [f"class {i}" for i in range(8)]])
def test_masks_of_classes_are_not_taken_for_instances(tmp_path, classes):
    folder = write_set(tmp_path / "scattered", [scattered(i) for i in range(12)], classes)
    assert bad(look(folder)) == {}
    same = [instances(7, i) for i in range(12)]  # seven organs, one region each, in every mask
    assert bad(look(write_set(tmp_path / "organs", same, classes))) == {}


def test_of_a_value_without_a_name_nothing_is_concluded(tmp_path):
    """As where a set's void value 11 is not among the ignored ones."""
    masks = [scattered(i) for i in range(12)]
    for mask in masks:
        mask[mask == 5] = 4  # class 5 is rare: in one mask alone, which is refused like the others
        mask[:8, :8] = 11
    masks[3][8:16, 8:16] = 5
    masks.append(np.zeros((64, 96), np.uint8))  # the one mask that is read
    folder = write_set(tmp_path, masks, [f"class {i}" for i in range(8)])
    report = look(folder)
    assert bad(report) == {"mask_value_unnamed": 1}
    (defect,) = found(report, "mask_value_unnamed")
    assert defect.message.startswith("12 of 13 masks hold 11, which is none of the classes (class 0=0, ")
    assert not {"class_without_objects", "class_imbalance", "masks_of_one_class"} & {d.code for d in report.defects}


def test_a_few_bad_masks_are_told_each(tmp_path):
    masks = [scattered(i) for i in range(12)]
    for i in (3, 5):
        masks[i][0, 0] = 77
    report = look(write_set(tmp_path, masks, [f"class {i}" for i in range(9)]))
    assert bad(report) == {"mask_values": 2}
    assert "class_without_objects" not in {d.code for d in report.defects}, "class 8 may be in what was refused"
