"""Images in one folder a class."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from densekit.data.transforms.pipeline import Pipeline
from densekit.errors import DensekitError
from densekit.registry import DATASETS


@pytest.fixture
def folder(tmp_path):
    names = ["dog/b.png", "dog/a.JPG", "dog/more/c.png", "cat/x.png", "dog/notes.txt", "README.md", ".cache/x.png"]
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg"):
            cv2.imwrite(str(path), np.full((8 + number, 12, 3), 40 * number, np.uint8))
        else:
            path.write_text("no image")
    return tmp_path


def test_classes_are_the_folders_and_images_come_sorted(folder):
    data = DATASETS.build("image_folder", {"images": str(folder)})
    assert data.classes.names == ("cat", "dog")
    assert data.classes.ids == (0, 1)
    assert data.task == "classification"
    samples = [data.sample(0, i) for i in range(len(data))]
    assert [s.id for s in samples] == ["cat/x.png", "dog/a.JPG", "dog/b.png", "dog/more/c.png"]
    assert [s.target for s in samples] == [0, 1, 1, 1]
    assert samples[2].image.shape == (8, 12, 3)
    assert samples[3].original_size == (10, 12)
    assert data.aspect_ratios() is None
    assert data.path(3) == folder / "dog/more/c.png"


def test_classes_can_be_chosen_and_ordered(folder):
    data = DATASETS.build("image_folder", {"images": str(folder), "classes": ["dog", "cat"]})
    assert [data.sample(0, i).target for i in range(4)] == [0, 0, 0, 1]


def test_samples_are_a_function_of_seed_epoch_and_index(folder):
    specs = [{"name": "Resize", "height": 16, "width": 16}, {"name": "RandomBrightnessContrast", "p": 1.0}]

    def make(seed: int) -> object:
        pipeline = Pipeline(specs)
        return DATASETS.build("image_folder", {"images": str(folder)}, transforms=pipeline, seed=seed, channels=1)

    first, again, other = make(0).sample(1, 3), make(0).sample(1, 3), make(1).sample(1, 3)
    assert first.image.shape == (16, 16, 1)
    assert np.array_equal(first.image, again.image)
    assert first.seed == again.seed != other.seed
    assert not np.array_equal(first.image, other.image)


def test_a_damaged_image_is_named(folder):
    (folder / "cat" / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(DensekitError, match=r"cat/x\.png"):
        DATASETS.build("image_folder", {"images": str(folder)}).sample(0, 0)


@pytest.mark.parametrize(
    ("path", "classes", "message"),
    [
        ("absent", None, "there is no such folder; give one that holds a folder for each class"),
        ("cat", None, "there is no class folder in it"),
        (".", ["dog", "cow"], "classes: .* has no class folder 'cow'; known are 'cat', 'dog', 'empty'"),
        (".", None, "empty: the class has no image"),
    ],
)
def test_folders_that_are_not_as_they_should_be_are_told(folder, path, classes, message):
    (folder / "empty").mkdir()
    options = {"images": str(folder / path)} | ({"classes": classes} if classes else {})
    with pytest.raises(DensekitError, match=message):
        DATASETS.build("image_folder", options)
