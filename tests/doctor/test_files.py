"""Defects of image and mask files: each planted one is found once."""

from __future__ import annotations

import os
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from densekit.data.formats.shapes import generate_shapes
from densekit.doctor.examine import examine
from densekit.doctor.images.checks import Question, look
from densekit.doctor.parallel import over_files
from tests.doctor.conftest import bad, found


def missing(p, path):
    path.unlink()


def empty(p, path):
    path.write_bytes(b"")


def text(p, path):
    path.write_text("no image at all")


def truncated(p, path):
    path.write_bytes(path.read_bytes()[:-200])


def folder(p, path):
    path.unlink()
    path.mkdir()


def upper_case(p, path):
    path.rename(path.with_name(path.name.upper()))


def another_format(p, path):
    pixels = cv2.imread(str(path))
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def turned(p, path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif, quality=95)


def another_size(p, path):
    Image.open(path).resize((50, 41)).save(path)


def huge(p, path):
    """A PNG whose header promises 60000 x 60000 pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data + b"\0\0\0\0IEND\xaeB`\x82")


def leaves(p, path):
    p.images[4]["file_name"] = "../../secret.jpg"


def absolute(p, path):
    p.images[4]["file_name"] = "/etc/hostname"


def linked(p, path):
    outside = p.root.parent / "secret.jpg"
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside)


FILES = {
    missing: "image_missing",
    empty: "image_unreadable",
    text: "image_unreadable",
    truncated: "image_truncated",
    folder: "image_missing",
    upper_case: "image_name_differs",
    another_format: "image_extension",
    turned: "image_orientation",
    another_size: "image_size",
    huge: "image_too_large",
    leaves: "name_leaves_folder",
    absolute: "name_leaves_folder",
    linked: "name_leaves_folder",
}


@pytest.mark.parametrize("plant", FILES, ids=lambda f: f.__name__)
def test_a_bad_image_file_is_found_once(planted, plant):
    path = planted.image_file(4)
    plant(planted, path)
    report = planted.examine()
    assert bad(report) == {FILES[plant]: 1}
    assert found(report, FILES[plant])[0].file.endswith(planted.images[4]["file_name"])


def grey(pixels):
    return Image.fromarray(pixels).convert("L")


def palette(pixels):
    return Image.fromarray(pixels).convert("P")


def alpha(pixels):
    return Image.fromarray(pixels).convert("RGBA")


def deep(pixels):
    return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("make", "codes"),
    [
        (grey, {"image_grey"}),
        (palette, {"image_palette"}),
        (alpha, {"image_alpha"}),
        (deep, {"image_grey"}),
    ],
)
def test_how_pixels_are_stored_is_told_where_it_differs(planted, make, codes):
    pixels = np.asarray(Image.open(planted.image_file(2)))
    planted.images[2]["file_name"] = "train/odd.png"
    make(pixels).save(planted.image_file(2))
    report = planted.examine()
    assert {d.code for d in report.defects if d.file.endswith("odd.png")} - {"image_no_annotation"} == codes
    assert report.exit_code == 0


def test_how_a_whole_set_is_stored_is_one_note(tmp_path):
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (20, 20), np.uint8))
    report = examine(tmp_path, processes=1, shown=False)
    assert [d.code for d in report.defects] == ["images_grey"]
    assert "model.channels: 1" in report.defects[0].kind.remedy
    assert "5 of 5" in report.defects[0].message


def test_identical_images_within_a_set_and_across_splits(planted):
    shutil.copy(planted.image_file(0), planted.image_file(0).with_name("again.jpg"))
    shutil.copy(planted.image_file(1), planted.root / "images" / "val" / "leak.jpg")
    report = examine(planted.root / "images", processes=1, shown=False)
    assert bad(report) == {"image_identical": 1, "leak_identical": 1}
    assert "000001.jpg of train" in found(report, "leak_identical")[0].message


def test_images_that_were_saved_anew_are_near_identical(tmp_path):
    generate_shapes(tmp_path / "s", train=12, val=3, test=3, size=128, seed=1)
    images = tmp_path / "s" / "images"
    first = Image.open(images / "train" / "000000.jpg")
    first.save(images / "train" / "poor.jpg", quality=25)
    second = Image.open(images / "train" / "000003.jpg")
    second.resize((second.width // 2, second.height // 2)).save(images / "test" / "small.jpg")
    Image.eval(Image.open(images / "val" / "000001.jpg"), lambda v: min(255, v + 6)).save(images / "val" / "bright.png")
    report = examine(images, processes=1, shown=False)
    assert bad(report) == {"image_near_identical": 1, "leak_near_identical": 1}
    assert not any("bright.png" in d.file + d.message for d in report.defects), "in one split a second shot is no harm"
    assert found(report, "leak_near_identical")[0].file.endswith("small.jpg")


def test_flat_and_tiny_images_are_not_compared_by_their_looks(tmp_path):
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"flat{i}.png"), np.full((64, 64, 3), 100 + i, np.uint8))
        digit = np.zeros((28, 28), np.uint8)
        cv2.line(digit, (14, 4 + i // 2), (14 + i % 2, 24), 255, 3)
        cv2.imwrite(str(tmp_path / f"one{i}.png"), digit)
    assert bad(examine(tmp_path, processes=1, shown=False)) == {}


def mask_path(p, index):
    return p.root / "masks" / "train" / f"{index:06d}.png"


def test_each_planted_defect_of_masks_is_found_once(planted):
    masks = {i: cv2.imread(str(mask_path(planted, i)), 0) for i in range(8)}
    shape = masks[1].shape
    mask_path(planted, 0).unlink()
    cv2.imwrite(str(mask_path(planted, 1)), masks[1][:-3])
    cv2.imwrite(str(mask_path(planted, 2)), np.where(masks[2] > 0, 77, 0).astype(np.uint8) | (masks[2] == 0))
    cv2.imwrite(str(mask_path(planted, 3)), np.full(masks[3].shape, 255, np.uint8))
    mask_path(planted, 4).write_bytes(mask_path(planted, 4).read_bytes()[:-30])
    cv2.imwrite(str(mask_path(planted, 5)), np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8))
    cv2.imwrite(str(mask_path(planted, 99)), masks[6])
    report = examine(planted.root, processes=1, shown=False)
    codes = {d.code: d.file for d in report.defects if d.severity != "note"}
    assert bad(report) == {
        "mask_missing": 1,
        "mask_size": 1,
        "mask_values": 1,
        "mask_all_ignored": 1,
        "mask_unreadable": 2,
        "mask_without_image": 1,
    }
    names = {"mask_size": "000001.png", "mask_values": "000002.png", "mask_all_ignored": "000003.png"}
    assert all(codes[code].endswith(name) for code, name in names.items())


def test_a_palette_that_was_sorted_anew_is_told(planted):
    colours = [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 0]
    for i in range(len(planted.images)):
        mask = Image.fromarray(cv2.imread(str(mask_path(planted, i)), 0)).convert("P")
        mask.putpalette(colours if i != 7 else [*colours[:3], *colours[6:9], *colours[3:6], *colours[9:]])
        values = np.asarray(mask).copy()
        values[:4, :4] = 1
        changed = Image.fromarray(values)
        changed = changed.convert("P") if changed.mode != "P" else changed
        changed.putpalette(mask.getpalette())
        changed.save(mask_path(planted, i))
    report = examine(planted.root, processes=1, shown=False)
    assert bad(report) == {"mask_palette": 1}
    assert found(report, "mask_palette")[0].file.endswith("000007.png")


def test_masks_are_found_by_their_own_folder_and_images(clean):
    report = examine(clean / "masks" / "val", clean / "images" / "val", processes=1, shown=False)
    assert bad(report) == {}
    assert report.images == 6


def _double(value):
    if value == 70:
        os._exit(9)
    return 2 * value


def test_a_process_that_dies_takes_one_file_with_it():
    results = over_files(_double, list(range(100)), "trying", lambda _: -1, processes=2, shown=False)
    assert results == [-1 if v == 70 else 2 * v for v in range(100)]


def test_values_that_mean_nothing_are_an_error_that_names_the_file(tmp_path):
    random = np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.tif"), random.uniform(0, 255, (20, 20)).astype(np.float32))
    values = random.uniform(0, 255, (20, 20)).astype(np.float32)
    values[:2] = np.nan
    cv2.imwrite(str(tmp_path / "bad.tif"), values)
    np.save(tmp_path / "bad.npy", values)
    report = examine(tmp_path, processes=1, shown=False)
    defects = found(report, "image_not_finite")
    assert [(d.file, d.message[:13]) for d in defects] == [
        (str(tmp_path / "bad.npy"), "40 of its 400"),
        (str(tmp_path / "bad.tif"), "40 of its 400"),
    ]
    assert report.exit_code == 4


def test_the_range_of_deep_images_is_one_note_and_an_image_on_another_scale_a_warning(tmp_path):
    random = np.random.default_rng(0)
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), random.integers(5, 4000, (40, 40)).astype(np.uint16))
    report = examine(tmp_path, processes=1, shown=False)
    assert bad(report) == {}
    assert "values from 5 to 3999; data.range [0, 4095]" in found(report, "image_deep")[0].message
    np.save(tmp_path / "fraction.npy", random.uniform(0, 1, (40, 40)).astype(np.float32))
    report = examine(tmp_path, processes=1, shown=False)
    assert bad(report) == {"image_dark": 1}
    assert found(report, "image_dark")[0].file.endswith("fraction.npy")


def test_a_set_that_uses_next_to_nothing_of_its_range_is_one_warning_with_the_range_to_set(tmp_path):
    random = np.random.default_rng(0)
    for i in range(3):
        values = random.integers(100, 300, (40, 40)).astype(np.uint16)
        values[0, 0] = 60000
        cv2.imwrite(str(tmp_path / f"{i}.tif"), values)
    report = examine(tmp_path, processes=1, shown=False)
    assert bad(report) == {"range_too_wide": 1}
    assert found(report, "range_too_wide")[0].message.endswith("[100, 299] would show them")


@pytest.mark.parametrize(
    ("tag", "turned", "said"),
    [(3, False, "fits both"), (6, False, "annotated as stored"), (6, True, "is the turned one")],
)
def test_an_orientation_is_told_with_what_the_annotated_size_says_of_it(planted, tag, turned, said):
    path, exif = planted.image_file(4), Image.Exif()
    exif[0x0112] = tag
    image = Image.open(path).resize((64, 40))
    image.save(path, exif=exif)
    planted.images[4].update({"width": 40, "height": 64} if turned else {"width": 64, "height": 40})
    assert said in found(planted.examine(), "image_orientation")[0].message


def test_all_pages_of_an_image_are_looked_at_where_the_model_takes_them(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), v, np.float32)) for v in (1, 2, 3, np.nan)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert look(Question(tmp_path / "a.tif", (8, 8), 100)).problems == []
    assert [code for code, _ in look(Question(tmp_path / "a.tif", (8, 8), 100, channels=4)).problems] == [
        "image_not_finite"
    ]
