"""A folder of images and masks becomes a config that trains."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from densekit.registry import DATASETS
from tests.data.formats import folders
from tests.tools import runs

SMALL = [
    "model.heads.masks.decoder_channels=[8,8,8,8]", "train.epochs=null", "train.steps=1", "train.batch_size=2",
    "train.schedule.warmup=0", "train.precision=fp32", "evaluation.pictures=0", "log.tensorboard=false",
    "data.workers=0",
]  # fmt: skip
OPTIONS = ("--weights", "none", "--backbone", "resnet8", "--size", 32)


def init(folder, target, *options):
    code, printed = runs.call("init", folder, "--out", target, *OPTIONS, *options)
    assert code == 0, printed
    return printed, yaml.safe_load(target.read_text())


def labels(number, values=(0, 1)):
    """[30, 40 + number] with every value in a block of its own."""
    drawn = np.full((30, 40 + number), values[0], np.uint8)
    for k, value in enumerate(values[1:]):
        drawn[4 + 6 * k : 9 + 6 * k, 5 : 20 + number] = value
    return drawn


def mask(path, drawn, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(drawn)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return drawn


def pair(images, masks, image="{}.jpg", other="{}.png", count=6, values=(0, 1)):
    for i in range(count):
        folders.image(images / image.format(i), 40 + i, 30)
        mask(masks / other.format(i), labels(i, values))


def two_folders(folder):
    pair(folder / "images", folder / "masks")


def german(folder):
    pair(folder / "Bilder", folder / "Masken", "{}.JPG", "{}.PNG")


def unnamed(folder):
    pair(folder / "a", folder / "b")


def suffix(folder):
    pair(folder, folder, "img_{}.jpg", "img_{}_mask.png")


def suffix_of_one_ending(folder):
    pair(folder, folder, "img_{}.png", "img_{}_mask.png")


def prefix(folder):
    pair(folder, folder, "image_{}.png", "mask_{}.png")


def one_folder_by_ending(folder):
    pair(folder, folder, "{}.jpg", "{}.png")


def splits_inside(folder):
    for split in ("train", "val", "test"):
        pair(folder / "images" / split, folder / "masks" / split)


def splits_outside(folder):
    for split in ("train", "valid"):
        pair(folder / split / "images", folder / split / "masks", other="{}_L.png")


def splits_in_names(folder):
    for split in ("train", "val"):
        pair(folder / split, folder / f"{split}_labels", other="{}_L.png")


def splits_of_one_folder(folder):
    for split in ("train", "val"):
        pair(folder / split, folder / split, other="{}_mask.png")


def cities(folder):
    for split in ("train", "val"):
        for city in ("aachen", "bonn"):
            pair(
                folder / "leftImg8bit" / split / city, folder / "gtFine" / split / city,
                city + "_{}_leftImg8bit.png", city + "_{}_gtFine_labelIds.png", 2,
            )  # fmt: skip


def pascal(folder):
    pair(folder / "JPEGImages", folder / "SegmentationClass")
    pair(folder / "JPEGImages", folder / "SegmentationObject")
    folders.image(folder / "JPEGImages/unlabelled.jpg")
    folders.text(folder / "ImageSets/Segmentation/train.txt", "0\n1\n2\n")
    folders.text(folder / "ImageSets/Segmentation/val.txt", "3\n4\n")
    folders.text(folder / "ImageSets/Segmentation/trainval.txt", "0\n1\n2\n3\n4\n")


LAYOUTS = {
    two_folders: (5, 1), german: (5, 1), unnamed: (5, 1), suffix: (5, 1), suffix_of_one_ending: (5, 1), prefix: (5, 1),
    one_folder_by_ending: (5, 1), splits_inside: (6, 6, 6), splits_outside: (6, 6), splits_in_names: (6, 6),
    splits_of_one_folder: (6, 6), cities: (4, 4), pascal: (3, 2),
}  # fmt: skip


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_images_and_masks_are_found_however_they_lie(tmp_path, make):
    make(tmp_path / "in")
    printed, tree = init(tmp_path / "in", tmp_path / "run.yaml")
    assert "segmentation, labels of the format masks" in printed
    counts = []
    for split in ("train", "val", "test")[: len(LAYOUTS[make])]:
        part = tree["data"][split]
        data = DATASETS.build(part.pop("name"), part, path=split)
        counts.append(len(data))
        for i in range(len(data)):
            with Image.open(data.path(i)) as image, Image.open(data.source.mask_path(i)) as drawn:
                assert image.size == drawn.size
                assert np.array_equal(data.source.mask(i), np.asarray(drawn))
                assert image.mode == "RGB"
    assert tuple(counts) == LAYOUTS[make]


def test_the_config_of_a_folder_trains_and_its_model_predicts(tmp_path):
    suffix(tmp_path / "in")
    init(tmp_path / "in", tmp_path / "run.yaml")
    code, trained = runs.call("train", tmp_path / "run.yaml", "--out", tmp_path / "run", "--device", "cpu", *SMALL)
    assert code == 0, trained
    folders.image(tmp_path / "new/a.jpg", 50, 36)
    code, predicted = runs.call("predict", tmp_path / "run/best.pt", tmp_path / "new", "--out", tmp_path / "out")
    assert code == 0, predicted
    with Image.open(next((tmp_path / "out").rglob("a*.png"))) as drawn:
        assert drawn.size == (50, 36)


def classes_of(folder, values, *options):
    pair(folder / "images", folder / "masks", values=values)
    printed, tree = init(folder, folder / "a.yaml", *options)
    return printed, tree["data"]["train"]


def test_values_are_looked_at_and_classes_proposed(tmp_path):
    printed, part = classes_of(tmp_path / "a", (0, 255))
    assert part["classes"] == {"background": 0, "foreground": 255}
    assert "values 0 (" in printed
    assert "255 (" in printed
    _, part = classes_of(tmp_path / "b", (0, 3, 7))
    assert part["classes"] == {"background": 0, "class_3": 3, "class_7": 7}
    assert part["ignore"] == []


def test_what_is_ignored_is_said_by_the_user_alone(tmp_path):
    printed, part = classes_of(tmp_path / "a", (0, 1, 255))
    assert part["classes"] == {"background": 0, "class_1": 1, "class_255": 255}
    assert "--ignore 255" in printed
    _, part = classes_of(tmp_path / "b", (0, 1, 255), "--ignore", 255)
    assert part["classes"] == {"background": 0, "class_1": 1}
    assert part["ignore"] == [255]


def test_names_come_from_the_user_or_from_a_file_beside_the_masks(tmp_path):
    _, part = classes_of(tmp_path / "a", (0, 255), "--classes", "glass", "cell")
    assert part["classes"] == {"glass": 0, "cell": 255}
    folders.text(tmp_path / "b/classes.txt", "glass\ncell\nnucleus\n")
    printed, part = classes_of(tmp_path / "b", (0, 1))
    assert part["classes"] == {"glass": 0, "cell": 1, "nucleus": 2}
    assert "classes.txt" in printed
    pair(tmp_path / "c/images", tmp_path / "c/masks")
    line = runs.refused("init", tmp_path / "c", "--out", tmp_path / "c.yaml", "--classes", "a", "b", "c")
    assert "3 names for 2 values" in line


def colours(folder):
    """Colour-coded masks, and their colours."""
    table = np.array([(0, 0, 0), (128, 0, 0), (0, 64, 200)], np.uint8)
    for i in range(4):
        folders.image(folder / f"images/{i}.png", 40 + i, 30)
        mask(folder / f"masks/{i}.png", table[labels(i, (0, 1, 2)) if i else np.zeros((30, 40), np.uint8)])
    return table


def test_colours_are_classes(tmp_path):
    table = colours(tmp_path / "in")
    _, tree = init(tmp_path / "in", tmp_path / "a.yaml", "--ignore", "0,0,0")
    part = tree["data"]["train"]
    assert sorted(part["colors"].values()) == sorted(table[1:].tolist())
    assert part["ignore_colors"] == [[0, 0, 0]]
    for text, name in (("name,r,g,b\nvoid,0,0,0\ncar,128,0,0\nsky,0,64,200\n", "class_dict.csv"),
                       ("void:0,0,0::\ncar:128,0,0::\nsky:0,64,200::\n", "labelmap.txt")):  # fmt: skip
        folders.text(tmp_path / "in" / name, text)
        _, tree = init(tmp_path / "in", tmp_path / f"{name}.yaml")
        assert tree["data"]["train"]["colors"] == {"void": [0, 0, 0], "car": [128, 0, 0], "sky": [0, 64, 200]}
        (tmp_path / "in" / name).unlink()


def test_palette_masks_give_their_indices(tmp_path):
    for i in range(4):
        folders.image(tmp_path / f"in/images/{i}.png", 40 + i, 30)
        mask(tmp_path / f"in/masks/{i}.png", labels(i, (0, 1, 2)), [0, 0, 0, 128, 0, 0, 0, 64, 200])
    _, tree = init(tmp_path / "in", tmp_path / "a.yaml")
    assert list(tree["data"]["train"]["classes"].values()) == [0, 1, 2]


def test_several_bands_and_layers_from_arrays(tmp_path):
    random = np.random.default_rng(0)
    for i in range(4):
        (tmp_path / "in/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in/masks").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"in/images/{i}.npy", random.integers(0, 255, (32, 40, 5), dtype=np.uint8))
        np.save(tmp_path / f"in/masks/{i}.npy", random.integers(0, 2, (2, 32, 40), dtype=np.uint8))
    printed, tree = init(tmp_path / "in", tmp_path / "run.yaml")
    assert tree["model"]["channels"] == 5
    assert tree["data"]["train"]["multi_label"] is True
    assert "layers 0 (" in printed
    assert "channels: 5, to which" in printed
    code, trained = runs.call("train", tmp_path / "run.yaml", "--out", tmp_path / "run", "--device", "cpu", *SMALL)
    assert code == 0, trained


def test_a_tiff_with_a_page_a_channel_has_as_many_channels(tmp_path):
    random = np.random.default_rng(0)
    for i in range(4):
        mask(tmp_path / f"in/masks/{i}.png", labels(i))
        pages = [Image.fromarray(random.integers(0, 256, (30, 40 + i), dtype=np.uint8)) for _ in range(6)]
        (tmp_path / "in/images").mkdir(parents=True, exist_ok=True)
        pages[0].save(tmp_path / f"in/images/{i}.tiff", save_all=True, append_images=pages[1:])
    _, tree = init(tmp_path / "in", tmp_path / "a.yaml")
    part = tree["data"]["train"]
    data = DATASETS.build(part.pop("name"), part, path="train", channels=tree["model"]["channels"])
    assert data.sample(0, 0).image.shape[2] == 6


def test_files_that_can_not_be_used_are_left_aside_with_the_reason(tmp_path):
    two_folders(tmp_path / "in")
    folders.image(tmp_path / "in/images/lonely.jpg")
    mask(tmp_path / "in/masks/more.png", labels(0))
    mask(tmp_path / "in/masks/2.png", labels(9))
    (tmp_path / "in/masks/3.png").write_bytes(b"")
    printed, _ = init(tmp_path / "in", tmp_path / "a.yaml")
    assert "1 images without mask are left aside: lonely.jpg" in printed
    assert "1 masks without image are left aside: more.png" in printed
    assert "2.png (it is 49 x 30, and its image 2.jpg 42 x 30 pixels)" in printed
    listed = (tmp_path / "a_train.txt").read_text() + (tmp_path / "a_val.txt").read_text()
    assert sorted(line.split("\t")[0] for line in listed.splitlines()) == ["0.jpg", "1.jpg", "4.jpg", "5.jpg"]


def test_names_with_blanks_are_listed_as_they_are(tmp_path):
    pair(tmp_path / "in/images", tmp_path / "in/masks", "an image {}.jpg", "an image {}.png")
    _, tree = init(tmp_path / "in", tmp_path / "a.yaml")
    part = tree["data"]["train"]
    assert len(DATASETS.build(part.pop("name"), part, path="train")) == 5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: pair(f / "images", f / "masks", other="{}.jpg"), "have lost which pixel is what class"),
        (lambda f: pair(f / "images", f / "masks", values=(1,)), "hold the value 1 alone"),
        (
            lambda f: pair(f / "images", f / "masks", count=1),
            "1 images, which are no two different ones, can't be split",
        ),
    ],
)
def test_what_can_not_be_learned_is_refused_in_a_line(tmp_path, make, said):
    make(tmp_path / "in")
    assert said in runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml")
    assert list(tmp_path.glob("a*")) == []


def soft(folder):
    """Masks of 0 and 255 whose edges were blurred."""
    for i in range(3):
        folders.image(folder / f"images/{i}.png", 64 + i, 64)
        drawn = cv2.resize(np.pad(np.full((4, 4), 255, np.uint8), 2), (64 + i, 64), interpolation=cv2.INTER_LINEAR)
        mask(folder / f"masks/{i}.png", drawn)


def mask_an_object(folder):
    for i in range(3):
        folders.image(folder / f"{i}.jpg", 40 + i, 30)
        for k in range(2):
            mask(folder / f"{i}_mask_{k}.png", labels(i))


def folder_an_image(folder):
    for i in range(3):
        folders.image(folder / f"set/{i}x/images/{i}x.png", 40 + i, 30)
        for k in range(2):
            mask(folder / f"set/{i}x/masks/{k}{i}.png", labels(i))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (soft, "soft edges"),
        (mask_an_object, "0.jpg has several masks, 0_mask_0.png and 0_mask_1.png"),
        (folder_an_image, "9 images, but no labels of"),
        (lambda f: pair(f, f, "{}.jpg", "{}_mask.jpg"), "have lost which pixel is what class"),
        (lambda f: pair(f / "val/images", f / "val/masks"), "none to train on"),
    ],
)
def test_what_would_be_learned_wrongly_is_refused(tmp_path, make, said):
    make(tmp_path / "in")
    assert said in runs.refused("init", tmp_path / "in", "--out", tmp_path / "a.yaml")


def test_the_one_folder_of_an_archive_is_looked_into(tmp_path):
    two_folders(tmp_path / "in/data")
    folders.text(tmp_path / "in/README.txt", "masks of cells\n")
    _, tree = init(tmp_path / "in", tmp_path / "a.yaml")
    assert tree["data"]["train"]["images"] == str(tmp_path / "in/data/images")
