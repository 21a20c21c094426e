"""Masks from files: kinds of files, pairing, parts, bad input; each defect is one line that names the file."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from densekit.data.formats.segmentation import balanced_weights, class_counts
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import IGNORE, DensekitError

LABELS = np.array([[0, 1, 1, 2], [0, 0, 1, 2], [255, 255, 0, 0]], np.uint8)
NAMES = ["sky", "road", "car"]


def save_image(path, size=(3, 4), channels=3, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
    return pixels


def save_mask(path, values=LABELS, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([5 * i % 256 for i in range(768)])
    image.save(path)


@pytest.fixture
def folder(tmp_path):
    """Two images with masks, one of them in a subfolder."""
    for index, name in enumerate(("a", "sub/b")):
        save_image(tmp_path / "images" / f"{name}.png", seed=index)
        save_mask(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def build(folder, **options):
    defaults = {"images": str(folder / "images"), "masks": str(folder / "masks"), "classes": NAMES}
    return DATASETS.build(
        "masks", {k: v for k, v in {**defaults, **options}.items() if v is not None}, path="data.train"
    )


def refusal(folder, **options):
    """The one-line message that building or reading gives."""

    def read_all():
        data = build(folder, **options)
        return [data.sample(0, index) for index in range(len(data))]

    with pytest.raises(DensekitError) as error:
        read_all()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_images_and_masks_are_paired_by_their_relative_names(folder):
    data = build(folder)
    samples = [data.sample(0, i) for i in range(len(data))]
    assert [s.id for s in samples] == ["a.png", "sub/b.png"]
    for sample in samples:
        np.testing.assert_array_equal(sample.mask, LABELS)
        np.testing.assert_array_equal(sample.truth, LABELS)
        assert sample.original_size == (3, 4)
        assert sample.image.shape == (3, 4, 3)
    assert data.task == "segmentation"
    assert data.classes.ids == (0, 1, 2)


def test_truth_is_kept_untouched_in_evaluation_and_left_out_in_training(folder):
    data = DATASETS.build(
        "masks",
        {"images": folder / "images", "masks": folder / "masks", "classes": NAMES},
        transforms=Pipeline([{"name": "Resize", "height": 6, "width": 8}], training=False),
    )
    sample = data.sample(0, 0)
    assert sample.mask.shape == (6, 8)
    assert sample.truth.shape == (3, 4)
    training = DATASETS.build(
        "masks", {"images": folder / "images", "masks": folder / "masks", "classes": NAMES}, training=True
    )
    assert training.sample(0, 0).truth is None


def test_masks_move_with_their_images(tmp_path):
    """The mask marks the bright half of the image; it still does after flips, crops and scaling."""
    random = np.random.default_rng(0)
    for index in range(4):
        labels = np.zeros((40, 40), np.uint8)
        cv2.ellipse(labels, (20, 20), (15, 7), float(random.integers(180)), 0, 360, 1, -1)
        save_mask(tmp_path / "masks" / f"{index}.png", labels)
        save_mask(tmp_path / "images" / f"{index}.png", labels * 200)
    pipeline = Pipeline([
        {"name": "ScaleJitter", "size": [32, 32], "scale": [0.7, 1.5], "fill": 0},
        {"name": "HorizontalFlip"},
        {"name": "RandomRotate90"},
        {"name": "Affine", "rotate": [-30, 30], "fill": 0},
    ])  # fmt: skip
    data = DATASETS.build(
        "masks",
        {"images": tmp_path / "images", "masks": tmp_path / "masks", "classes": ["rest", "blob"]},
        transforms=pipeline,
        training=True,
    )
    for epoch in range(5):
        for index in range(4):
            sample = data.sample(epoch, index)
            known = sample.mask != IGNORE
            wrong = ((sample.image[..., 0] > 100) != (sample.mask == 1))[known].mean()
            assert wrong < 0.05


def test_samples_depend_on_epoch_and_index_alone(folder):
    data = DATASETS.build(
        "masks",
        {"images": folder / "images", "masks": folder / "masks", "classes": NAMES},
        transforms=Pipeline([{"name": "ScaleJitter", "size": [5, 5]}]),
        training=True,
        seed=3,
    )
    first = data.sample(1, 0)
    data.sample(0, 1)
    again, other = data.sample(1, 0), data.sample(2, 0)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert first.seed == again.seed != other.seed


# --- kinds of mask files ---------------------------------------------------------------------------------------------


def single(tmp_path, save, **options):
    save_image(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    save(tmp_path / "masks")
    return build(tmp_path, **options).sample(0, 0).mask


def test_palette_masks_give_their_indices_not_their_colours(tmp_path):
    mask = single(tmp_path, lambda folder: save_mask(folder / "a.png", mode="P"))
    np.testing.assert_array_equal(mask, LABELS)


def test_masks_of_0_and_255_have_the_class_255_and_nothing_is_ignored(tmp_path):
    binary = np.where(LABELS == 1, 255, 0).astype(np.uint8)
    mask = single(tmp_path, lambda f: save_mask(f / "a.png", binary), classes={"rest": 0, "cell": 255})
    np.testing.assert_array_equal(mask, LABELS == 1)


def test_values_are_mapped_to_labels_in_the_order_of_the_classes(tmp_path):
    values = np.array([[7, 300, 7, 65535]], np.uint16)
    save_image(tmp_path / "images" / "a.png", (1, 4))
    save_mask(tmp_path / "masks" / "a.png", values)
    data = build(tmp_path, classes={"b": 300, "a": 7}, ignore=[65535, 9])
    np.testing.assert_array_equal(data.sample(0, 0).mask, [[1, 0, 1, 255]])
    assert data.classes.ids == (300, 7)


def test_one_bit_masks_give_0_and_1(tmp_path):
    mask = single(
        tmp_path, lambda f: Image.fromarray(LABELS == 1).convert("1").save(f / "a.png"), classes=["rest", "x"]
    )
    np.testing.assert_array_equal(mask, LABELS == 1)


@pytest.mark.parametrize("ending", ["tif", "bmp"])
def test_other_lossless_formats(tmp_path, ending):
    np.testing.assert_array_equal(single(tmp_path, lambda f: save_mask(f / f"a.{ending}")), LABELS)


def test_grey_masks_saved_as_colour_or_with_alpha_are_understood(tmp_path):
    np.testing.assert_array_equal(
        single(tmp_path, lambda f: Image.fromarray(LABELS).convert("RGBA").save(f / "a.png")), LABELS
    )


def test_array_masks(tmp_path):
    mask = single(tmp_path, lambda f: np.save(f / "a.npy", LABELS.astype(np.float64)))
    np.testing.assert_array_equal(mask, LABELS)


COLORS = {"sky": [128, 128, 128], "road": [128, 64, 128], "car": [64, 0, 128]}


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colour_coded_masks_with_a_table(tmp_path, mode):
    table = np.zeros((256, 3), np.uint8)
    table[:3] = list(COLORS.values())
    coded = table[LABELS]

    def save(folder):
        image = Image.fromarray(coded)
        (image.convert("P", palette=Image.Palette.ADAPTIVE, colors=8) if mode == "P" else image).save(folder / "a.png")

    mask = single(tmp_path, save, classes=None, colors=COLORS, ignore_colors=[[0, 0, 0]])
    np.testing.assert_array_equal(mask, LABELS)


def test_a_colour_table_from_a_file_leaves_ignored_colours_out(tmp_path):
    table = tmp_path / "class_dict.csv"
    rows = [f"{name}, {r}, {g}, {b}" for name, (r, g, b) in COLORS.items()]
    table.write_text("\n".join(["name,r,g,b", *rows, "Void,0,0,0"]))
    coded = np.zeros((256, 3), np.uint8)
    coded[:3] = list(COLORS.values())
    mask = single(
        tmp_path,
        lambda f: Image.fromarray(coded[LABELS]).save(f / "a.png"),
        classes=None,
        colors=str(table),
        ignore_colors=[[0, 0, 0]],
    )
    np.testing.assert_array_equal(mask, LABELS)
    for line in ("sky,1,2", "sky,1,2,300", "car,1,2,3\ncar,1,2,4", "sky,a,b,c"):
        table.write_text(f"x,9,9,9\n{line}\n")
        assert "name,red,green,blue" in refusal(tmp_path, classes=None, colors=str(table))


@pytest.mark.parametrize("last", [False, True])
def test_layers_of_arrays_are_multi_label(tmp_path, last):
    layers = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (4, 3, 4))
    mask = single(
        tmp_path,
        lambda f: np.save(f / "a.npy", layers.transpose(1, 2, 0) if last else layers),
        multi_label=True,
        classes=[*NAMES, "bus"],
    )
    np.testing.assert_array_equal(mask, layers)


# --- kinds of images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "channels"), [("grey", 1), ("grey", 3), ("rgba", 3), ("palette", 3), ("16bit", 1),
                                                ("tiff5", 5), ("npy7", 7)])  # fmt: skip
def test_images_of_every_kind(tmp_path, kind, channels):
    folder = tmp_path / "images"
    folder.mkdir()
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    if kind == "grey":
        Image.fromarray(grey).save(folder / "a.png")
    elif kind == "rgba":
        Image.fromarray(np.stack([grey] * 3 + [grey * 0], 2)).save(folder / "a.png")
    elif kind == "palette":
        image = Image.fromarray(grey).convert("P")
        image.putpalette([v for v in range(256) for _ in range(3)])
        image.save(folder / "a.png")
    elif kind == "16bit":
        Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "a.png")
    elif kind == "tiff5":
        cv2.imwritemulti(str(folder / "a.tif"), [grey] * 5)
    else:
        np.save(folder / "a.npy", np.stack([grey] * 7, 2))
    save_mask(tmp_path / "masks" / "a.png")
    data = DATASETS.build("masks", {"images": folder, "masks": tmp_path / "masks", "classes": NAMES}, channels=channels)
    image = data.sample(0, 0).image
    assert image.shape == (3, 4, channels)
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], channels, 2))


# --- pairing, lists, parts -------------------------------------------------------------------------------------------


def test_suffixes_say_what_belongs_together(tmp_path):
    """The layout of Cityscapes: several files an image in the mask folder."""
    save_image(tmp_path / "images" / "aachen" / "x_1_leftImg8bit.png")
    for end in ("labelIds", "instanceIds", "color"):
        save_mask(tmp_path / "masks" / "aachen" / f"x_1_gtFine_{end}.png")
    data = build(tmp_path, image_suffix="_leftImg8bit.png", mask_suffix="_gtFine_labelIds.png")
    assert data.source.mask_path(0).name == "x_1_gtFine_labelIds.png"
    assert "mask_suffix" in refusal(tmp_path, image_suffix="_leftImg8bit.png")


def test_lists_of_names_and_of_pairs(folder):
    (folder / "names.txt").write_text("# train\nsub/b\n\n")
    assert [p.image for p in build(folder, list=folder / "names.txt").source.pairs] == ["sub/b.png"]
    (folder / "pairs.txt").write_text("a.png sub/b.png\n")
    pairs = build(folder, list=folder / "pairs.txt").source.pairs
    assert [(p.image, p.mask) for p in pairs] == [("a.png", "sub/b.png")]
    (folder / "with_endings.txt").write_text("a.png\n")
    assert len(build(folder, list=folder / "with_endings.txt")) == 1


def test_a_list_may_leave_images_without_masks_alone(folder):
    save_image(folder / "images" / "without.jpg")
    (folder / "list.txt").write_text("a\n")
    assert len(build(folder, list=folder / "list.txt", image_suffix=".png", mask_suffix=".png")) == 1


def test_a_fraction_and_its_rest_share_nothing_and_miss_nothing(tmp_path):
    for index in range(20):
        save_image(tmp_path / "images" / f"{index}.png")
        save_mask(tmp_path / "masks" / f"{index}.png")

    def names(**options):
        return [p.image for p in build(tmp_path, fraction=0.8, **options).source.pairs]

    first, rest = names(), names(part="rest")
    assert (len(first), len(rest)) == (16, 4)
    assert set(first) | set(rest) == {f"{i}.png" for i in range(20)}
    assert names() == first
    assert names(split_seed=1) != first


def test_classes_from_a_file(folder):
    (folder / "classes.txt").write_text("# order of the values\nsky\nroad sign\n\ncar\n")
    assert build(folder, classes=str(folder / "classes.txt")).classes.names == ("sky", "road sign", "car")


# --- counts ----------------------------------------------------------------------------------------------------------


def test_class_counts_and_weights(folder):
    counts = class_counts(build(folder))
    np.testing.assert_array_equal(counts, [10, 6, 4, 4])
    weights = balanced_weights(counts[:-1], power=1.0)
    assert weights[0] * 10 == pytest.approx(weights[1] * 6) == pytest.approx(weights[2] * 4)
    assert sum(weights) / 3 == pytest.approx(1)
    assert balanced_weights(np.array([4, 0, 4])) == [1, 0, 1]
    with pytest.raises(DensekitError, match="no pixel"):
        balanced_weights(np.array([0, 0]))


# --- bad input -------------------------------------------------------------------------------------------------------


def test_an_image_and_a_mask_of_different_size_are_both_named(folder):
    save_image(folder / "images" / "a.png", (5, 6))
    message = refusal(folder)
    assert "images/a.png: the image is 6 x 5" in message
    assert "masks/a.png is 4 x 3" in message


def test_a_value_of_no_class_is_named_with_the_number_of_its_pixels(folder):
    save_mask(folder / "masks" / "a.png", np.where(LABELS == 2, 9, LABELS).astype(np.uint8))
    message = refusal(folder)
    assert "masks/a.png: value 9 (2 pixels)" in message
    assert "sky=0, road=1, car=2" in message


def test_a_0_255_mask_read_as_class_indices_is_recognised(folder):
    save_mask(folder / "masks" / "a.png", np.where(LABELS == 1, 255, 0).astype(np.uint8))
    assert "give the class the value 255" in refusal(folder, ignore=[9])


def test_a_colour_mask_without_a_table_is_refused_with_the_remedy(folder):
    save_image(folder / "masks" / "a.png")
    message = refusal(folder)
    assert "masks/a.png: a colour image" in message
    assert "colors" in message


def test_a_colour_of_no_class_is_named_with_the_nearest_class(folder):
    coded = np.full((3, 4, 3), (128, 128, 128), np.uint8)
    coded[0, 0] = (128, 64, 127)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(coded).save(folder / "masks" / name)
    message = refusal(folder, classes=None, colors=COLORS)
    assert "masks/a.png: colour (128, 64, 127) (1 pixels)" in message
    assert "'road'" in message


def test_a_missing_mask_and_a_missing_image_are_named(folder):
    (folder / "masks" / "a.png").rename(folder / "masks" / "aa.png")
    message = refusal(folder)
    assert "images/a.png: there is no mask of this image" in message
    assert "'aa'" in message
    (folder / "images" / "a.png").unlink()
    assert "masks/aa.png: there is no image of this mask" in refusal(folder)


def test_a_file_that_vanished_is_named(folder):
    data = build(folder)
    (folder / "images" / "a.png").unlink()
    with pytest.raises(DensekitError, match=r"images/a\.png"):
        data.sample(0, 0)
    (folder / "masks" / "sub" / "b.png").unlink()
    with pytest.raises(DensekitError, match=r"masks/sub/b\.png"):
        data.sample(0, 1)


def test_a_list_that_names_what_is_not_there_or_outside_is_refused(folder):
    (folder / "list.txt").write_text("b\n")
    assert "'b' is not in" in refusal(folder, list=folder / "list.txt")
    (folder / "list.txt").write_text("../masks/a.png a.png\n")
    assert "leaves the image folder" in refusal(folder, list=folder / "list.txt")
    (folder / "list.txt").write_text("\n")
    assert "names nothing" in refusal(folder, list=folder / "list.txt")
    (folder / "list.txt").write_text("a b c\n")
    assert "3 parts" in refusal(folder, list=folder / "list.txt")
    assert "can't be read" in refusal(folder, list=folder / "nothing.txt")


def test_damaged_and_lossy_masks_are_refused(folder):
    path = folder / "masks" / "a.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(folder)
    path.write_bytes(b"")
    assert "masks/a.png" in refusal(folder)
    Image.fromarray(LABELS).save(path, format="JPEG")
    assert "JPEG" in refusal(folder)
    damaged = bytearray(whole)
    damaged[45:50] = b"\0\0\0\0\0"
    path.write_bytes(bytes(damaged))
    assert "masks/a.png" in refusal(folder)


def test_a_huge_mask_is_refused_before_it_is_decoded(folder):
    with pytest.raises(DensekitError, match="max_pixels"):
        DATASETS.build(
            "masks", {"images": folder / "images", "masks": folder / "masks", "classes": NAMES}, max_pixels=10
        ).sample(0, 0)


def test_a_mask_with_every_pixel_ignored_is_a_sample_like_any_other(folder):
    save_mask(folder / "masks" / "a.png", np.full((3, 4), 255, np.uint8))
    assert (build(folder).sample(0, 0).mask == IGNORE).all()


def test_a_single_pixel_is_an_image_like_any_other(tmp_path):
    save_image(tmp_path / "images" / "a.png", (1, 1))
    save_mask(tmp_path / "masks" / "a.png", np.ones((1, 1), np.uint8))
    sample = build(tmp_path).sample(0, 0)
    assert sample.image.shape == (1, 1, 3)
    assert sample.mask.tolist() == [[1]]


def test_bad_arrays_are_refused(tmp_path):
    save_image(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    path = tmp_path / "masks" / "a.npy"
    for values, options, message in [
        (LABELS / 3, {}, "not whole"),
        (-LABELS.astype(np.int64), {}, "value -255"),
        (LABELS.astype(np.int64) + 70000, {}, "70000"),
        (np.zeros((2, 3, 4), np.uint8), {}, "multi_label"),
        (np.zeros((2, 3, 4), np.uint8), {"multi_label": True}, "layers of 3 classes"),
        (np.full((3, 3, 4), 7, np.uint8), {"multi_label": True}, "not 7 (36 pixels)"),
        (np.array(["x"]), {}, "save"),
    ]:
        np.save(path, values)
        assert message in refusal(tmp_path, **options)
    path.write_bytes(b"not an array")
    assert "numpy.save" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": None}, "give the names"),
        ({"classes": ["a", "a"]}, "occurs twice"),
        ({"classes": {"a": 0, "b": 0}}, "occurs twice"),
        ({"classes": {"a": 70000}}, "70000 is no value of a mask file"),
        ({"ignore": [1]}, "ignore: 1 is the value of a class"),
        ({"colors": {"ski": [0, 0, 0]}}, "'sky'"),
        ({"colors": {"sky": [0, 0, 0]}}, "has no colour"),
        ({"classes": None, "colors": {"sky": [0, 0, 300]}}, "less than or equal to 255"),
        ({"classes": None, "colors": {"sky": [0, 0, 0], "x": [0, 0, 0]}}, "stands twice"),
        ({"ignore_colors": [[0, 0, 0]]}, "no effect without colors"),
        ({"multi_label": True, "colors": COLORS}, "no colours"),
        ({"part": "rest"}, "fraction"),
        ({"fraction": 0.01}, "leaves none"),
        ({"fraction": 1.5}, "less than 1"),
        ({"mask_sufix": ".png"}, "mask_suffix"),
        ({"classes": "/nowhere/classes.txt"}, "can't be read"),
        ({"image_suffix": ".jpeg"}, "holds no file whose name ends in '.jpeg'"),
        ({"masks": "/nowhere"}, "there is no folder"),
    ],
)
def test_wrong_options_are_one_line_with_the_remedy(folder, options, message):
    assert message in refusal(folder, **options)


def test_two_files_of_one_name_are_refused(folder):
    save_image(folder / "images" / "a.jpg")
    assert "a.jpg and a.png" in refusal(folder)
