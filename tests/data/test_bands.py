"""Images of more than four bands: TIFF files in every layout, written here byte by byte, and transforms on them."""

from __future__ import annotations

import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from densekit.data.images.header import peek
from densekit.data.images.read import read_image, read_pixels
from densekit.data.transforms.geometry import resize_image
from densekit.data.transforms.pipeline import Pipeline
from densekit.types import DensekitError, Sample
from tests.tools import runs

NONE, DEFLATE = 1, 8


def write_tiff(
    path, image, *, order="<", planar=False, tile=None, compression=NONE, predictor=False, rows=7, big=False
):
    """A TIFF 6.0 file, or a BigTIFF, of [H, W, C], in strips of ``rows`` or in square tiles."""
    height, width, bands = image.shape
    planes = [image[:, :, [band]] for band in range(bands)] if planar else [image]
    body, offsets, counts = bytearray(b"II" if order == "<" else b"MM"), [], []
    body += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    step = (tile, tile) if tile else (rows, width)
    for plane in planes:
        for top, left in itertools.product(range(0, height, step[0]), range(0, width, step[1])):
            part = plane[top : top + step[0], left : left + step[1]]
            if tile:
                part = np.pad(part, [(0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)])
            if predictor and part.dtype.kind == "f":
                data = float_differences(part)
            else:
                if predictor:
                    part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))
                data = part.astype(part.dtype.newbyteorder(order)).tobytes()
            data = zlib.compress(data) if compression == DEFLATE else data
            offsets.append(len(body))
            counts.append(len(data))
            body += data + bytes(len(data) % 2)
    kind = {"u": 1, "i": 2, "f": 3}[image.dtype.kind]
    tags = {256: (width,), 257: (height,), 258: (8 * image.dtype.itemsize,) * bands, 259: (compression,), 262: (1,)}
    tags |= {
        277: (bands,),
        284: (2 if planar else 1,),
        317: ((3 if kind == 3 else 2) if predictor else 1,),
        338: (0,) * (bands - 1),
    }
    tags |= {339: (kind,) * bands}
    tags |= (
        {322: (tile,), 323: (tile,), 324: offsets, 325: counts} if tile else {273: offsets, 278: (rows,), 279: counts}
    )
    long, room = ("Q", 8) if big else ("I", 4)
    entries = b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{long}", *values)
        if len(packed) > room:
            place = struct.pack(order + long, len(body))
            body += packed
            packed = place
        entries += struct.pack(f"{order}HH{long}", tag, 16 if big else 4, len(values)) + packed
    body[room : 2 * room] = struct.pack(order + long, len(body))
    path.write_bytes(bytes(body) + struct.pack(order + ("Q" if big else "H"), len(tags)) + entries + bytes(room))
    return path


def float_differences(part):
    """Adobe's TIFF Technical Note 3: of each row first bytes of all numbers, then second ones, less those before."""
    rows, bands = len(part), part.shape[2]
    planes = part.astype(part.dtype.newbyteorder(">")).reshape(rows, -1).view(np.uint8)
    planes = planes.reshape(rows, -1, part.dtype.itemsize).transpose(0, 2, 1).reshape(rows, -1)
    differences = planes.copy()
    differences[:, bands:] -= planes[:, :-bands]
    return differences.tobytes()


LAYOUTS = list(itertools.product("<>", [False, True], [None, 16], [(NONE, False), (DEFLATE, False), (DEFLATE, True)]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize(("order", "planar", "tile", "packed"), LAYOUTS)
def test_a_tiff_of_five_bands_gives_the_values_that_were_written(tmp_path, dtype, order, planar, tile, packed):
    compression, predictor = packed
    image = np.random.default_rng(0).integers(0, 120, (21, 37, 5)).astype(dtype) * dtype(2)
    if image.dtype.kind == "f":
        image /= 7
    options = {"order": order, "planar": planar, "tile": tile, "compression": compression, "predictor": predictor}
    path = write_tiff(tmp_path / "a.tif", image, **options)
    found = read_pixels(path, channels=5)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(("order", "planar", "tile"), itertools.product("<>", [False, True], [None, 16]))
def test_a_bigtiff_of_five_bands_is_read_and_its_depth_seen(tmp_path, order, planar, tile):
    image = np.random.default_rng(0).integers(0, 2**16, (150, 100, 5)).astype(np.uint16)
    path = write_tiff(tmp_path / "a.tif", image, order=order, planar=planar, tile=tile, big=True)
    np.testing.assert_array_equal(read_pixels(path, channels=5), image)
    header = peek(path)
    assert (header.format, header.size, header.deep, header.bits) == ("TIFF", (150, 100), True, 16)


@pytest.mark.parametrize(("shape", "dtype"), [((150, 400), np.uint16), ((150, 400, 3), np.uint8), ((9, 8), np.float32)])
def test_a_bigtiff_of_pillow_is_read_and_its_depth_seen(tmp_path, shape, dtype):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    Image.fromarray(image).save(tmp_path / "a.tif", big_tiff=True)
    assert (tmp_path / "a.tif").read_bytes()[2] == 43
    found = read_pixels(tmp_path / "a.tif", channels=1 if image.ndim == 2 else 3)
    np.testing.assert_array_equal(found, image.reshape(found.shape))
    assert peek(tmp_path / "a.tif").deep == (dtype != np.uint8)


def test_pages_of_a_bigtiff_are_bands_too(tmp_path):
    planes = [np.random.default_rng(i).integers(0, 256, (9, 11), np.uint8) for i in range(6)]
    first, *others = [Image.fromarray(plane) for plane in planes]
    first.save(tmp_path / "a.tif", big_tiff=True, save_all=True, append_images=others)
    assert (tmp_path / "a.tif").read_bytes()[2] == 43
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif", channels=6), np.stack(planes, 2))


def test_libtiffs_predictor_of_floats_is_the_one_that_is_undone(tmp_path):
    """A file of libtiff's with one band, as the five bands that its rows are read as."""
    image = np.random.default_rng(0).random((12, 20)).astype(np.float32)
    Image.fromarray(image).save(tmp_path / "a.tif", compression="tiff_adobe_deflate", tiffinfo={317: 3})
    with Image.open(tmp_path / "a.tif") as made:
        (offset, *more), (count, *_) = made.tag_v2[273], made.tag_v2[279]
    assert not more
    data = zlib.decompress((tmp_path / "a.tif").read_bytes()[offset : offset + count])
    assert data == float_differences(image[:, :, None])


def test_lzw_is_read_too(tmp_path):
    image = np.random.default_rng(0).integers(0, 9, (20, 30, 6), np.uint8)
    made = cv2.imencode(".tif", image.reshape(20, 180), [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    order, start = "<", struct.unpack_from("<I", made, 4)[0]
    (count,) = struct.unpack_from("<H", made, start)
    data = bytearray(made)
    for at in range(start + 2, start + 2 + 12 * count, 12):  # the grey image's directory, as one of six bands
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in (256, 277):
            struct.pack_into(order + ("H" if kind == 3 else "I"), data, at + 8, 30 if tag == 256 else 6)
        if tag == 317:  # OpenCV's differences reach across the bands
            struct.pack_into(order + "H", data, at + 8, 2)
    if b"\x3d\x01" in made[start:]:
        image = np.cumsum(np.diff(image.reshape(20, 180), axis=1, prepend=0).reshape(20, 30, 6), 1, np.uint8)
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif", channels=6), image)


def test_bands_that_the_model_does_not_take_are_counted_and_the_key_is_named(tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.zeros((8, 8, 5), np.uint8))
    with pytest.raises(DensekitError, match=r"5 channels, but the model takes 3; set model\.channels=5"):
        read_image(path)


@pytest.mark.parametrize(("big", "dtype"), [(False, np.uint8), (True, np.uint8), (True, np.float32)])
def test_a_damaged_tiff_of_five_bands_is_named_in_one_line(tmp_path, big, dtype):
    image = np.full((64, 64, 5), 7, dtype)
    path = write_tiff(tmp_path / "a.tif", image, compression=DEFLATE, predictor=big, big=big)
    whole = path.read_bytes()
    for place in range(8 if not big else 4, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        said = ""
        try:
            assert read_pixels(path, channels=5).shape[2] == 5
        except DensekitError as error:
            said = str(error)
        assert said.startswith(f"{path}: ") or not said
        assert "\n" not in said


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("size", [(10, 13), (50, 61)])
def test_each_channel_is_resized_as_it_would_be_alone(channels, size):
    image = np.random.default_rng(0).integers(0, 255, (32, 40, channels), np.uint8)
    whole = resize_image(image, size)
    for c in range(channels):
        np.testing.assert_allclose(whole[:, :, c].astype(int), resize_image(image[:, :, [c]], size)[:, :, 0], atol=1)


def test_our_own_transforms_take_five_channels():
    names = [{"name": "ScaleJitter", "size": [24, 24]}, {"name": "HorizontalFlip"}, {"name": "VerticalFlip"}]
    pipeline = Pipeline([*names, {"name": "Resize", "long": 17}, {"name": "ContrastStretch"}])
    pipeline.check_channels(5)
    for seed in range(5):
        image = np.random.default_rng(seed).integers(0, 255, (40, 50, 5), np.uint8)
        sample = pipeline(Sample(image, id=0, original_size=(40, 50), seed=0), np.random.default_rng(seed))
        assert sample.image.shape == (17, 17, 5)


@pytest.mark.parametrize("inner", [False, True])
def test_a_transform_for_colours_is_refused_for_five_channels_before_the_run(tmp_path, inner):
    tree = runs.config_of("classification", tmp_path)
    jitter = {"name": "ColorJitter", "p": 0.01}
    tree["data"]["train_transforms"] = [{"name": "OneOf", "transforms": [jitter]} if inner else jitter]
    config = runs.write_config(tmp_path / "run.yaml", tree)
    line = runs.refused("train", config, "--out", tmp_path / "run", "model.channels=5")
    assert "data.train_transforms: ColorJitter can't take the images' 5 channels (model.channels): " in line
    assert "remove it" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["RandomBrightnessContrast", "GaussNoise", "D4", "GaussianBlur", "CoarseDropout"])
def test_transforms_for_any_channels_are_taken(name):
    Pipeline([{"name": name}]).check_channels(5)


def test_a_segmenter_trains_on_five_bands(tmp_path):
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(4):
        write_tiff(tmp_path / f"images/{number}.tif", random.integers(0, 4095, (40, 48, 5)).astype(np.uint16))
        cv2.imwrite(str(tmp_path / f"masks/{number}.png"), random.integers(0, 2, (40, 48), np.uint8))
    tree = runs.config_of("segmentation", tmp_path, steps=1)
    tree["model"].update(channels=5, normalize={"mean": [0.5], "std": [0.2]})
    tree["data"]["train_transforms"] = [{"name": "ScaleJitter", "size": [32, 32]}, {"name": "D4"}]
    for split in ("train", "val"):
        places = {"images": f"{tmp_path}/images", "masks": f"{tmp_path}/masks"}
        tree["data"][split] = {"name": "masks", **places, "classes": ["background", "crop"]}
    code, said = runs.call("train", runs.write_config(tmp_path / "run.yaml", tree), "--out", tmp_path / "run")
    assert code == 0, said
    code, said = runs.call("predict", tmp_path / "run/best.pt", tmp_path / "images", "--out", tmp_path / "out")
    assert code == 0, said
