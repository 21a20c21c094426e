"""Reading image files: orientation, depth, channels, limits, damaged and hostile files."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from densekit.data.images.header import read_header
from densekit.data.images.read import inside, leaves_folder, read_image
from densekit.types import DensekitError

RAMP = np.stack([np.arange(12)[:, None] * 20 + np.zeros(16, int), np.arange(16) * 15 + np.zeros((12, 1), int)], 2)
PICTURE = np.dstack([RAMP, np.full((12, 16), 77)]).astype(np.uint8)  # [12, 16, 3], no symmetry


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def test_png_comes_back_as_rgb(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PICTURE))
    assert np.array_equal(read_image(path), PICTURE)


def test_grey_becomes_three_equal_channels_and_stays_one_where_asked(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PICTURE[:, :, 0]))
    assert np.array_equal(read_image(path), np.repeat(PICTURE[:, :, :1], 3, 2))
    assert np.array_equal(read_image(path, channels=1), PICTURE[:, :, :1])


def test_colour_becomes_grey_where_one_channel_is_asked_for(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PICTURE))
    expected = np.asarray(Image.fromarray(PICTURE).convert("L"), int)
    assert np.abs(read_image(path, channels=1)[:, :, 0].astype(int) - expected).max() <= 1


def test_palette_gives_the_palettes_colours(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PICTURE).quantize(8))
    assert np.array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("transparent", [None, 0, 3])
def test_a_gif_has_the_colours_that_pillow_gives_it(tmp_path, transparent):
    options = {} if transparent is None else {"transparency": transparent}
    path = save(tmp_path / "a.gif", Image.fromarray(PICTURE).quantize(8), **options)
    with Image.open(path) as image:
        assert np.array_equal(read_image(path), np.asarray(image.convert("RGB")))
        assert np.array_equal(read_image(path, channels=1)[..., 0], np.asarray(image.convert("L")))
        if options:
            assert np.array_equal(read_image(path, channels=4), np.asarray(image.convert("RGBA")))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["tga", "ico"])
def test_tga_and_ico_are_read_as_pillow_reads_them(tmp_path, kind, mode):
    path = save(tmp_path / f"a.{kind}", Image.fromarray(PICTURE).resize((16, 16)).convert(mode))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_image(path), expected)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DensekitError, match=r"damaged|not an image"):
        read_image(path)


@pytest.mark.parametrize("kind", ["pcx", "sgi", "dds", "im"])
def test_formats_that_are_not_read_are_called_so_and_not_damaged(tmp_path, kind):
    path = save(tmp_path / f"a.{kind}", Image.fromarray(PICTURE))
    with pytest.raises(DensekitError, match=f"{kind.upper()} is not among the formats that are read; convert it"):
        read_image(path)


def test_a_jpeg_of_twelve_bits_is_called_so(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(PICTURE))
    data = path.read_bytes()
    at = data.index(b"\xff\xc0")  # the frame: marker, length, bits a value
    path.write_bytes(data[: at + 4] + b"\x0c" + data[at + 5 :])
    with pytest.raises(DensekitError, match="a JPEG of 12 bits is not among the formats"):
        read_image(path)


def test_alpha_is_dropped_and_not_blended(tmp_path):
    alpha = np.dstack([PICTURE, np.zeros((12, 16), np.uint8)])
    path = save(tmp_path / "a.png", Image.fromarray(alpha))
    assert np.array_equal(read_image(path), PICTURE)
    assert np.array_equal(read_image(path, channels=4), alpha)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied_as_pillow_does(tmp_path, tag, kind):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = tag
    lossless = {"webp": {"lossless": True}}.get(kind, {})
    path = save(tmp_path / f"a.{kind}", Image.fromarray(PICTURE), exif=exif, **lossless)
    with Image.open(path) as image:
        image.load()  # Pillow turns a TIFF here, other formats below
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), int)
    read = read_image(path).astype(int)
    assert read.shape == expected.shape
    assert np.abs(read - expected).max() <= 2


def test_the_annotated_size_decides_whether_the_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", Image.fromarray(PICTURE), exif=exif)
    assert np.array_equal(read_image(path, size=(12, 16)), PICTURE)
    assert np.array_equal(read_image(path, size=(16, 12)), np.rot90(PICTURE, 3))


def test_another_size_than_annotated_is_an_error(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PICTURE))
    with pytest.raises(DensekitError, match="16 x 12 but its annotations say 12 x 16"):
        read_image(path, size=(16, 12))


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_a_reduced_jpeg_is_smaller_and_looks_alike(tmp_path, reduce):
    smooth = cv2.resize(PICTURE, (61, 45), interpolation=cv2.INTER_CUBIC)
    path = save(tmp_path / "a.jpg", Image.fromarray(smooth), quality=98)
    small = read_image(path, reduce=reduce)
    assert small.shape == (-(-45 // reduce), -(-61 // reduce), 3)
    expected = cv2.resize(smooth, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 6
    assert read_image(path, reduce=reduce, channels=1).shape == (*small.shape[:2], 1)


def test_multi_channel_images_come_from_npy_and_tiff_pages(tmp_path):
    cube = np.random.default_rng(0).integers(0, 255, (6, 7, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", cube)
    Image.fromarray(cube[:, :, 0]).save(
        tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(cube[:, :, i]) for i in range(1, 5)]
    )
    assert np.array_equal(read_image(tmp_path / "a.npy", channels=5), cube)
    assert np.array_equal(read_image(tmp_path / "a.tif", channels=5), cube)


def test_float_images_stay_float(tmp_path):
    values = np.linspace(0, 255, 42, dtype=np.float32).reshape(6, 7)
    np.save(tmp_path / "a.npy", values.astype(np.float64))
    save(tmp_path / "a.tif", Image.fromarray(values))
    for name in ("a.npy", "a.tif"):
        read = read_image(tmp_path / name, channels=1)
        assert read.dtype == np.float32
        assert np.array_equal(read[:, :, 0], values)


def test_wrong_channel_count_says_both_counts(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PICTURE))
    with pytest.raises(DensekitError, match="3 channels, but the model takes 5"):
        read_image(path, channels=5)


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp", "tif", "gif"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.9, 0.995])
def test_a_file_cut_off_anywhere_is_an_error(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{kind}", Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DensekitError, match=r"cut off|damaged|not an image"):
        read_image(path)


def test_a_jpeg_whose_thumbnail_is_whole_but_whose_picture_is_cut_off_is_an_error(tmp_path):
    thumbnail = io.BytesIO()
    Image.fromarray(PICTURE).save(thumbnail, "JPEG")
    path = save(
        tmp_path / "a.jpg", Image.fromarray(PICTURE), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + thumbnail.getvalue()
    )
    assert read_image(path).shape == (12, 16, 3)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DensekitError, match="cut off"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "rule"),
    [(b"", "is empty"), (b"<html>404</html>", "not an image"), (b"\xff\xd8\xff", "not an image"), (b"II*\0", "not an")],
)
def test_files_that_are_no_images_are_named(tmp_path, content, rule):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DensekitError, match=f"x.jpg: .*{rule}"):
        read_image(path)


def test_a_missing_image_lists_the_nearest_name(tmp_path):
    save(tmp_path / "BloodImage_1.jpg", Image.fromarray(PICTURE))
    with pytest.raises(DensekitError, match=r"no such image; did you mean 'BloodImage_1.jpg'"):
        read_image(tmp_path / "BloodImage_1.jpeg")
    with pytest.raises(DensekitError, match="no folder"):
        read_image(tmp_path / "nowhere" / "a.jpg")
    with pytest.raises(DensekitError, match="cannot be read"):
        read_image(tmp_path)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(100_000, 100_000))
    with pytest.raises(DensekitError, match="100000 x 100000 pixels is over the limit"):
        read_image(path)
    save(tmp_path / "a.png", Image.fromarray(PICTURE))
    with pytest.raises(DensekitError, match=r"over the limit of 100;.*raise max_pixels"):
        read_image(tmp_path / "a.png", max_pixels=100)


def test_npy_files_with_code_nan_or_wrong_shape_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([print], dtype=object), allow_pickle=True)
    np.save(tmp_path / "b.npy", np.full((3, 3), np.nan))
    np.save(tmp_path / "c.npy", np.zeros((2, 2, 2, 2)))
    for name, rule in (("a", "not a plain"), ("b", "NaN"), ("c", r"must be \[H, W\]")):
        with pytest.raises(DensekitError, match=rule):
            read_image(tmp_path / f"{name}.npy", channels=1)


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "a/../../x", "a\0.jpg", "C:\\x.jpg", "..\\x.jpg", ""])
def test_file_names_may_not_leave_the_image_folder(tmp_path, name):
    with pytest.raises(DensekitError, match="leaves the image folder"):
        inside(tmp_path, name, "train.json")


def test_links_out_of_the_image_folder_are_refused_and_links_within_are_fine(tmp_path):
    folder, other = tmp_path / "images", tmp_path / "other"
    folder.mkdir(), other.mkdir()
    save(other / "a.png", Image.fromarray(PICTURE))
    save(folder / "b.png", Image.fromarray(PICTURE))
    os.symlink(other / "a.png", folder / "out.png")
    os.symlink(folder / "b.png", folder / "in.png")
    assert inside(folder, "in.png", "x.json") == folder / "in.png"
    with pytest.raises(DensekitError, match="is a link out of"):
        inside(folder, "out.png", "x.json")
    assert not leaves_folder("a..b/c.jpg")


def test_random_damage_never_raises_anything_but_our_error(tmp_path):
    random = np.random.default_rng(0)
    files = [save(tmp_path / f"a.{k}", Image.fromarray(PICTURE)).read_bytes() for k in ("jpg", "png", "tif", "webp")]
    for _ in range(200):
        data = bytearray(files[random.integers(len(files))])
        for at in random.integers(0, len(data), random.integers(1, 6)):
            data[at] = random.integers(256)
        (tmp_path / "x.bin").write_bytes(data)
        with contextlib.suppress(DensekitError):
            assert read_image(tmp_path / "x.bin", max_pixels=10**5).dtype in (np.uint8, np.float32)


def test_headers_say_the_format(tmp_path):
    for kind, name in (("jpg", "JPEG"), ("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP")):
        header = read_header(save(tmp_path / f"a.{kind}", Image.fromarray(PICTURE)).read_bytes())
        assert (header.format, header.width, header.height, header.truncated) == (name, 16, 12, False)
