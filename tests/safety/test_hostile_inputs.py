"""Files made to do harm: to run code, fill the memory, never end, or reach files that are not theirs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from densekit import config as configs
from densekit.backbones.weights import read_state_dict
from densekit.data.feature_store import FeatureStore
from densekit.data.formats.masks.files import read_values
from densekit.data.images.files import list_images
from densekit.data.images.read import read_image
from densekit.doctor.examine import examine
from densekit.errors import DensekitError
from densekit.registry import DATASETS
from tests.features.conftest import make_export, make_network, run_export, write_images
from tests.safety.uses import limits

GIGA = 10**9


class Touch:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(use, *arguments, match: str = ".") -> str:
    """The one line by which an input is refused, in bounded time and memory."""
    with limits(), pytest.raises(DensekitError, match=match) as caught:
        use(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Code.


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle", "wrapped"])
def test_weights_that_would_run_code_are_refused_and_run_none(tmp_path, kind):
    trap, path = tmp_path / "trap", tmp_path / "weights.pth"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Touch(trap)))
    else:
        content = (
            {"state_dict": {"conv1.weight": torch.zeros(1), "x": Touch(trap)}} if kind == "wrapped" else Touch(trap)
        )
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    refused(read_state_dict, path, match=r"weights\.pth")
    assert not trap.exists()


def test_arrays_of_objects_are_refused_and_run_no_code(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "image.npy"
    np.save(path, np.array([Touch(trap)], dtype=object), allow_pickle=True)
    refused(read_image, path, match=r"image\.npy")
    refused(read_values, path, match=r"image\.npy")
    assert not trap.exists()


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.mkdir [{trap}]",
        "!!python/object/new:os.system [mkdir {trap}]",
        "seed: !!python/name:os.system",
        "? !!python/object/apply:os.mkdir [{trap}]\n: 1",
    ],
)
def test_yaml_that_would_run_code_is_refused_and_runs_none(tmp_path, text):
    trap, path = tmp_path / "trap", tmp_path / "run.yaml"
    path.write_text(text.replace("{trap}", str(trap)))
    refused(configs.load, path, match=r"run\.yaml")
    refused(configs.load, configs_path(), [f"seed=!!python/object/apply:os.mkdir [{trap}]"])
    assert not trap.exists()


def configs_path() -> Path:
    return Path(__file__).resolve().parents[2] / "configs" / "detection" / "faster_rcnn_r18_shapes.yaml"


# Memory and time.


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nseed: [*c, *c]",
        "a: &a [*a]",
        "seed: " + "[" * 20_000,
        "seed: " + "{a: " * 20_000,
        "seed: " + "9" * 100_000,
        "seed: 1e" + "9" * 1000,
        "\0seed: 1",
        "seed: 0\nseed: 1",
    ],
    ids=["aliases", "endless alias", "deep list", "deep mapping", "digits", "exponent", "null byte", "key twice"],
)
def test_yaml_bombs_are_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    refused(configs.load, path, match=r"run\.yaml")


JSON_BOMBS = {
    "deep list": "[" * 1_000_000,
    "deep object": '{"images": ' * 500_000,
    "deep value": '{"info": ' + "[" * 500_000 + "]" * 500_000 + ', "images": [], "annotations": [], "categories": []}',
    "deep segmentation": '{"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "categories": '
    '[{"id": 1, "name": "x"}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [NaN, 1, 1, 1], '
    '"segmentation": ' + "[" * 500_000 + "]" * 500_000 + "}]}",
    "digits": '{"images": [{"id": ' + "9" * 1_000_000 + ', "file_name": "a", "width": 1, "height": 1}]}',
    "string that never ends": '{"images": [{"id": 1, "file_name": "' + "a" * 1_000_000,
    "utf-16": '{"images": []}'.encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("text", JSON_BOMBS.values(), ids=JSON_BOMBS)
def test_json_bombs_are_refused_by_training_and_survived_by_the_doctor(tmp_path, text):
    path = tmp_path / "bomb.json"
    path.write_bytes(text.encode("latin-1"))
    refused(open_coco_in(tmp_path), path)
    with limits():
        report = examine(path, tmp_path, processes=1, shown=False)
    assert report.exit_code == 4


def open_coco_in(folder: Path):
    return lambda path: DATASETS.build("coco", {"images": str(folder), "annotations": str(path)})


def coco(folder: Path, **image) -> Path:
    """A COCO file of one image with one object."""
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    entry = {"id": 1, "file_name": "a.png", "width": 8, "height": 8} | image
    polygon = [[1, 1, 6, 1, 6, 6, 1, 6]]
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    content = {
        "images": [entry],
        "annotations": [row | {"segmentation": polygon}],
        "categories": [{"id": 1, "name": "x"}],
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path


def first_sample(name: str, folder: Path, path: Path):
    return DATASETS.build(name, {"images": str(folder), "annotations": str(path)}, training=True).sample(0, 0)


@pytest.mark.parametrize("name", ["coco", "coco_masks"])
@pytest.mark.parametrize("size", [2**19, 2**31, GIGA, 10**12])
def test_an_image_that_the_json_calls_huge_is_refused_before_anything_is_drawn(tmp_path, name, size):
    refused(first_sample, name, tmp_path, coco(tmp_path, width=size, height=size), match=r"coco\.json|a\.png")


def png(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("sides", [(2**20, 2**20), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)])
def test_image_and_mask_bombs_are_refused_before_they_are_decoded(tmp_path, sides):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*sides))
    refused(read_image, path, match=r"bomb\.png")
    refused(read_values, path, match=r"bomb\.png")
    with limits():
        assert examine(tmp_path, processes=1, shown=False).exit_code == 4


@pytest.mark.parametrize("shape", [(10**6, 10**6), (2**31, 2**31), (2**62, 4), (-1, 8), ()])
def test_arrays_whose_header_is_larger_than_the_file_are_refused(tmp_path, shape):
    path, buffer = tmp_path / "bomb.npy", io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    path.write_bytes(buffer.getvalue() + b"\0" * 100)
    refused(read_image, path, match=r"bomb\.npy")
    refused(read_values, path, match=r"bomb\.npy")


def test_a_compressed_archive_that_unpacks_into_gigabytes_is_refused_as_weights(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(2**26))
    refused(read_state_dict, path, match=r"bomb\.pth")


def test_safetensors_whose_header_lies_about_sizes_are_refused(tmp_path):
    path = tmp_path / "bomb.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [GIGA, GIGA], "data_offsets": [0, 4 * GIGA * GIGA]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(read_state_dict, path, match=r"bomb\.safetensors")
    path.write_bytes(struct.pack("<Q", 2**62) + header)
    refused(read_state_dict, path, match=r"bomb\.safetensors")


def test_a_pipe_in_place_of_an_image_does_not_wait_for_ever(tmp_path):
    path = tmp_path / "a.png"
    os.mkfifo(path)
    refused(read_image, path, match=r"a\.png")
    refused(read_values, path, match=r"a\.png")
    with pytest.raises(DensekitError):
        list_images([tmp_path])


# Places.


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/hostname",
        "x/../../secret.png",
        "C:\\secret.png",
        "..\\secret.png",
        "link.png",
        "",
        "a\0.png",
    ],
)
def test_names_that_leave_the_image_folder_are_refused_by_training_and_reported_by_the_doctor(tmp_path, name):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    path = coco(folder, file_name=name)
    refused(first_sample, "coco", folder, path, match="leaves the image folder|link out of")
    with limits():
        report = examine(path, folder, processes=1, shown=False)
    assert report.exit_code == 4
    assert all(defect.picture is None for defect in report.defects), "a file outside of the folder would be shown"


def test_a_feature_store_that_names_files_elsewhere_is_refused(tmp_path):
    write_images(tmp_path / "images", 3)
    run_export(make_export(make_network(), tmp_path / "images"), tmp_path / "store")
    save_file({"c3": torch.zeros(3, 32, 4, 4)}, tmp_path / "elsewhere.safetensors")
    manifest = tmp_path / "store" / "manifest.json"
    for place in ("index", "shards"):
        content = json.loads(manifest.read_text())
        entry = content["index"] if place == "index" else content["shards"][0]
        entry["file"] = "../elsewhere.safetensors"
        other = tmp_path / "store" / "manifest.json"
        before = other.read_text()
        other.write_text(json.dumps(content))
        refused(FeatureStore, tmp_path / "store", match="leaves the store")
        other.write_text(before)
    assert len(FeatureStore(tmp_path / "store")) == 3
