"""The split of a folder keeps pictures of one scene together."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from densekit.first_config import split
from densekit.first_config.split import split_images


def picture(seed, size=96):
    """Smooth shapes, different for each seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (size + 8, size), interpolation=cv2.INTER_CUBIC)


def saved(folder, name, pixels, **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def scenes(folder, count=8):
    """Pictures, and of the first three a brighter one of the same place, saved as JPEG."""
    paths = [saved(folder, f"{i}.png", picture(i)) for i in range(count)]
    brighter = [np.clip(picture(i)[:, 3:-5].astype(int) * 1.1 + 4, 0, 255).astype(np.uint8) for i in range(3)]
    return paths + [saved(folder, f"again_{i}.jpg", pixels, quality=90) for i, pixels in enumerate(brighter)]


def test_pictures_of_one_scene_stay_together_whatever_the_seed(tmp_path):
    paths = scenes(tmp_path)
    drawn = set()
    for seed in range(6):
        train, val, lines = split_images(paths, seed)
        assert sorted(train + val) == list(range(11))
        assert all((i in val) == (8 + i in val) for i in range(3))
        drawn.add(tuple(val))
    assert len(drawn) > 1
    assert lines == ["6 pictures of 3 scenes stay together, such as 0.png and again_0.jpg"]


def test_a_set_of_one_scene_is_split_by_image_and_says_so(tmp_path):
    still = picture(0, 128)
    paths = [saved(tmp_path, f"{i}.png", still[i : i + 110, i : i + 110]) for i in range(5)]
    train, val, lines = split_images(paths, 0)
    assert (len(train), len(val)) == (4, 1)
    assert "5 pictures hang together as one scene" in lines[0]


def test_many_images_are_split_without_a_look_which_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "_MOST", 10)
    monkeypatch.setattr(split, "look", None)
    _, _, lines = split_images(scenes(tmp_path), 0)
    assert lines == ["pictures of the same scene were not looked for among so many (10 images or 2 GB at most)"]
