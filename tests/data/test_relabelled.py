"""A data set in a model's label order: by name, also where it lacks some of the model's classes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densekit.data.formats.image_folder import image_folder
from densekit.data.relabelled import Relabelled
from densekit.types import Classes, DensekitError, Sample


class Plain:
    """Two classes of ids 5 and 2."""

    task = "detection"
    classes = Classes(("dog", "cat"), (5, 2))

    def __len__(self):
        return 1

    def sample(self, epoch, index):
        mask = np.array([[0, 1], [255, 0]], np.uint8)
        layers = np.stack((mask == 0, mask == 1)).astype(np.uint8)
        image = np.zeros((2, 2, 3), np.uint8)
        return Sample(
            image, id=0, original_size=(2, 2), seed=0, labels=np.array([0, 1]), target=1, mask=mask, truth=layers
        )

    def aspect_ratios(self):
        return None


def test_labels_masks_and_layers_follow_the_model_and_ids_stay_the_data_sets():
    data = Relabelled(Plain(), Classes(("bird", "cat", "dog"), (1, 2, 3)))
    assert data.classes == Classes(("bird", "cat", "dog"), (1, 2, 5))
    sample = data.sample(0, 0)
    assert sample.labels.tolist() == [2, 1]
    assert sample.target == 1
    assert sample.mask.tolist() == [[2, 1], [255, 2]]
    assert sample.truth.tolist() == [[[0, 0], [0, 0]], [[0, 1], [0, 0]], [[1, 0], [0, 1]]]
    assert "nothing is measured for 'bird'" in data.notes[0]


def test_an_id_that_the_data_set_gives_to_another_class_is_not_given_twice():
    data = Relabelled(Plain(), Classes(("bird", "cat", "dog"), (5, 1, 2)))
    assert data.classes.ids == (6, 2, 5)


def test_a_class_that_the_model_did_not_learn_is_refused_with_the_remedy():
    with pytest.raises(DensekitError, match=r"data.val has a class 'dog' .*did not learn.*option classes"):
        Relabelled(Plain(), Classes(("cat", "cow"), (2, 5)), "data.val")


def test_class_folders_are_matched_by_name(tmp_path):
    for name in ("a", "c"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    data = Relabelled(image_folder(images=tmp_path), Classes(("a", "b", "c"), (0, 1, 2)))
    assert [data.sample(0, i).target for i in range(2)] == [0, 2]
