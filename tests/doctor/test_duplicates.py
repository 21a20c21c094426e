"""Images that occur twice: errors for the same picture, warnings for one scene, nothing for what is of one kind."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from densekit.doctor.examine import examine
from densekit.doctor.images import checks as image_checks
from densekit.doctor.images import outlines
from densekit.doctor.images.duplicates import identical_images
from densekit.doctor.images.likeness import PICTURE, saved_anew, shared
from tests.doctor.conftest import bad, found

SIDE, MARGIN = 160, 24


def texture(random, side, slope):
    """[side, side] noise whose spectrum falls with its frequency, of mean 0 and deviation 1."""
    squared = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side)[None] ** 2
    squared[0, 0] = 1
    waves = random.normal(size=squared.shape) + 1j * random.normal(size=squared.shape)
    values = np.fft.irfft2(waves / squared ** (slope / 2), s=(side, side))
    return (values - values.mean()) / values.std()


def scene(seed):
    """A picture of its own, larger than what is cut from it."""
    random, side = np.random.default_rng(seed), SIDE + 2 * MARGIN
    image = np.stack([texture(random, side, 1.8) for _ in range(3)], 2) * 25 + random.integers(90, 160, 3)
    image = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(20):
        centre, radius = tuple(int(v) for v in random.integers(0, side, 2)), int(random.integers(4, 20))
        cv2.circle(image, centre, radius, tuple(int(v) for v in random.integers(0, 255, 3)), -1, cv2.LINE_AA)
    return image


def cut(image, x=0, y=0):
    return image[MARGIN + y : MARGIN + y + SIDE, MARGIN + x : MARGIN + x + SIDE]


def exposed(image, gain, gamma, seed=0):
    noise = np.random.default_rng(seed).normal(0, 2, image.shape)
    return np.clip((image / 255) ** gamma * gain * 255 + noise, 0, 255).astype(np.uint8)


def retina(seed):
    """A disc with a bright spot, as all of them have, and vessels of its own."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    distance = np.hypot(x - 0.5, y - 0.5)
    disc = distance < 0.45
    grey = np.where(disc, 190 * (1 - distance**2), 0) + 50 * np.exp(-((x - 0.68) ** 2 + (y - 0.5) ** 2) / 0.003)
    vessels = np.zeros((SIDE, SIDE))
    for _ in range(14):
        place, angle = np.array([0.68, 0.5]), random.uniform(0, 2 * np.pi)
        for _ in range(16):
            angle += random.normal(0, 0.35)
            step = place + 0.04 * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(vessels, *(tuple((SIDE * p).astype(int).tolist()) for p in (place, step)), 1, 2, cv2.LINE_AA)
            place = step
    grey = grey - 60 * vessels * disc + 3 * texture(random, SIDE, 1.4) * disc
    return np.clip(grey[..., None] * [0.3, 0.5, 1.0], 0, 255).astype(np.uint8)


def moved(image, x, y):
    return cv2.warpAffine(image, np.float32([[1, 0, x], [0, 1, y]]), image.shape[1::-1])


def write(folder, **splits):
    for split, images in splits.items():
        (folder / split).mkdir(parents=True)
        for number, image in enumerate(images):
            cv2.imwrite(str(folder / split / f"{number:03d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return folder


def look(folder):
    return examine(folder, processes=1, shown=False)


def similar(report):
    return [d for d in report.defects if d.code.startswith(("image_", "leak_"))]


@pytest.mark.parametrize(
    "save",
    [
        lambda image, path: cv2.imwrite(f"{path}.jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50]),
        lambda image, path: cv2.imwrite(f"{path}.png", cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA)),
        lambda image, path: cv2.imwrite(f"{path}.bmp", cv2.resize(image, (320, 200), interpolation=cv2.INTER_CUBIC)),
    ],
    ids=["quality", "half", "stretched"],
)
def test_an_image_that_was_saved_anew_is_a_leak_and_an_error(tmp_path, save):
    images = [cut(scene(i)) for i in range(8)]
    folder = write(tmp_path, train=images)
    (folder / "val").mkdir()
    cv2.imwrite(str(folder / "val" / "other.png"), cut(scene(99)))
    save(images[3], folder / "val" / "again")
    report = look(folder)
    assert bad(report) == {"leak_near_identical": 1}
    (defect,) = found(report, "leak_near_identical")
    assert defect.file.startswith(str(folder / "val" / "again"))
    assert "003.jpg of train" in defect.message
    assert report.exit_code == 4


@pytest.mark.parametrize(("gain", "gamma", "x", "y"), [(0.6, 1.0, 0, 0), (1.3, 1.3, 5, -4), (0.8, 0.7, -14, 9)])
def test_one_scene_at_another_exposure_and_a_little_moved_is_a_leak_to_look_at(tmp_path, gain, gamma, x, y):
    scenes = [scene(i) for i in range(10)]
    again = [exposed(cut(scenes[i], x, y), gain, gamma, i) for i in (2, 7)]
    report = look(write(tmp_path, train=[cut(s) for s in scenes], val=[*again, cut(scene(50))]))
    assert bad(report) == {"leak_similar": 2}
    assert {d.message[-len("002.jpg of train") :] for d in similar(report)} == {"002.jpg of train", "007.jpg of train"}
    assert report.exit_code == 3


def test_different_scenes_are_not_alike(tmp_path):
    report = look(write(tmp_path, train=[cut(scene(i)) for i in range(16)], val=[cut(scene(i)) for i in range(20, 28)]))
    assert similar(report) == []


def test_pictures_of_one_kind_are_not_taken_for_one_another(tmp_path):
    """Retinas: the same disc and spot, other vessels."""
    report = look(write(tmp_path, train=[retina(i) for i in range(12)], val=[retina(i) for i in range(12, 18)]))
    assert similar(report) == []


def test_one_retina_taken_twice_is_found_among_others(tmp_path):
    retinas = [retina(i) for i in range(12)]
    again = [exposed(moved(retinas[i], 3, -2), 0.8, 1.1) for i in (1, 8)]
    report = look(write(tmp_path, train=retinas, val=again))
    assert bad(report) == {"leak_similar": 2}


def frames(count):
    """A camera that turns slowly, and something that moves."""
    random = np.random.default_rng(5)
    wide = np.concatenate([scene(70), scene(71)], 1)
    for i in range(count):
        frame = wide[MARGIN : MARGIN + SIDE, 4 * i : 4 * i + SIDE].copy()
        cv2.circle(frame, (20 + 7 * i, 100), 10, (0, 0, 255), -1)
        yield np.clip(frame + random.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)


def test_the_frames_of_a_video_are_one_note_within_a_set_and_one_warning_across(tmp_path):
    others = [cut(scene(i)) for i in range(6)]
    report = look(write(tmp_path / "one", train=[*others, *frames(12)]))
    (note,) = similar(report)
    assert (note.code, note.severity) == ("image_similar", "note")
    assert "12 pictures" in note.message
    assert "006.jpg ... 017.jpg" in note.message
    shots = list(frames(12))
    report = look(write(tmp_path / "two", train=[*others, *shots[::2]], val=shots[1::2]))
    (warning,) = similar(report)
    assert (warning.code, warning.severity) == ("leak_similar", "warning")
    assert "12 pictures" in warning.message
    assert "6 in train, 6 in val" in warning.message


FIELDS_TWICE = [(227, 260), (386, 391), (37, 38), (229, 258), (230, 257), (231, 256), (382, 395)]
"""Pictures of BCCD that show one field of a slide, as one sees: moved, and at another exposure."""


def test_fields_of_real_slides_that_were_photographed_twice_are_found_and_no_others(real_data):
    numbers = [n for pair in FIELDS_TWICE for n in pair] + list(range(0, 36))
    paths = [p for n in numbers if (p := real_data / "bccd" / "images" / f"BloodImage_{n:05d}.jpg").exists()]
    halves = [
        [look_at(p) for p in paths if (int(p.stem[-5:]) in dict(FIELDS_TWICE)) == first] for first in (True, False)
    ]
    told = list(identical_images([("train", halves[0]), ("val", halves[1])]))
    pairs = {tuple(sorted(int(p.stem[-5:]) for p in (d.picture, d.other))) for d in told}
    assert {d.code for d in told} == {"leak_similar"}
    assert pairs == set(FIELDS_TWICE)


def look_at(path):
    return image_checks.look(image_checks.Question(path, None, 2**28))


def test_copies_within_a_set_are_told_once(tmp_path):
    image = cut(scene(0))
    folder = write(tmp_path, train=[cut(scene(i)) for i in range(5)])
    for quality in (40, 60, 80):
        cv2.imwrite(str(folder / "train" / f"copy{quality}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    report = look(folder)
    assert bad(report) == {"image_near_identical": 1}
    assert "4 pictures" in found(report, "image_near_identical")[0].message


def test_small_images_are_compared_pixel_by_pixel(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    digits = [random.integers(0, 255, (28, 28), np.uint8) for _ in range(5)]
    for i, digit in enumerate(digits):
        cv2.imwrite(str(tmp_path / "train" / f"{i}.png"), digit)
    cv2.imwrite(str(tmp_path / "val" / "same.bmp"), digits[2])
    nearly = digits[3].copy()
    nearly[0, 0] ^= 1
    cv2.imwrite(str(tmp_path / "val" / "nearly.png"), nearly)
    report = look(tmp_path)
    assert bad(report) == {"leak_near_identical": 1}
    assert found(report, "leak_near_identical")[0].file.endswith("same.bmp")


def grey(image):
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)


def test_what_was_saved_anew_is_told_from_another_shot():
    image = cut(scene(3))
    brighter = np.clip(image.astype(int) + 8, 0, 255).astype(np.uint8)
    walked = image.copy()
    cv2.circle(walked, (80, 80), 7, (255, 255, 255), -1)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)
    expected = {"jpeg": (jpeg, True), "brighter": (brighter, False), "walked": (walked, False)}
    for name, (other, same) in expected.items():
        assert saved_anew(grey(image), grey(other), SIDE) is same, name
        assert shared(grey(image), grey(other)).part() > 0.8, name


def test_patches_are_found_where_they_moved():
    image = scene(4)
    common = shared(grey(cut(image)), grey(cut(image, 10, -6)))
    inside = common.asked.reshape(8, 8)
    assert common.part() > 0.9
    assert not inside[:, 0].any(), "the first column has left the picture"
    assert inside[1:-1, 1:-1].mean() > 0.9


def test_among_many_images_nearly_the_same_pairs_are_found_as_by_comparing_all(monkeypatch):
    random = np.random.default_rng(0)
    pictures = [cv2.resize(random.normal(size=(9, 9)).astype(np.float32), (36, 36)) for _ in range(400)]
    twins = [(p[dy : dy + 32, dx : dx + 32], p[:32, :32]) for p, dy, dx in zip(pictures, [1, 0] * 200, [0, 1] * 200)]
    both = np.concatenate([[t[side] for t in twins] for side in (0, 1)])
    described = outlines.outlines(np.clip(120 + 40 * both, 0, 255).astype(np.uint8))
    wanted = {(i, i + 400) for i in range(400)}
    exact = outlines.candidates(described)
    assert wanted <= set(exact)
    monkeypatch.setattr(outlines, "_EXACT", 100)
    fast = outlines.candidates(described)
    assert len(wanted & set(fast)) > 0.9 * len(wanted)
    assert len(fast) < 1.5 * len(exact)
