"""The table of everything that the doctor can find: one line a code, with why it hurts and what to do about it."""

from __future__ import annotations

import dataclasses
from typing import Literal

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first. An error stops training or makes it learn something false; a note is a fact to know."""

EXIT_CODES = {"error": 4, "warning": 3, "note": 0}
"""Exit code of ``tools/doctor.py`` by the worst that was found (2 stays a mistake in the command)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What a code means.

    Attributes:
        severity: how bad.
        why: why it hurts.
        training: what training would do with it.
        remedy: what to do.
    """

    severity: Severity
    why: str
    training: str
    remedy: str


_STOPS = "Training stops with an error that names it."
_REFUSED = "The file is refused when it is opened."
_AT_IMAGE = "Training stops when it comes to the image (with data.on_bad_image: skip it takes the next one)."

KINDS: dict[str, Kind] = {
    # The annotation file as a whole.
    "file_unreadable": Kind(
        "error",
        "nothing can be learned from a file that cannot be read",
        _REFUSED,
        "restore or export the file again",
    ),
    "array_empty": Kind(
        "error", "there is nothing to learn from", _REFUSED, "export the file with its images and categories"
    ),
    "row_malformed": Kind(
        "error",
        "a row without the keys and types of COCO has no meaning",
        _REFUSED,
        "correct the row, or --fix it away",
    ),
    "data_set_unusable": Kind(
        "error",
        "the data set of the config cannot be built",
        _STOPS,
        "correct the config or the files as told",
    ),
    "refused_by_training": Kind(
        "error",
        "training reads files more strictly than the checks do",
        _REFUSED,
        "correct the file as told, or write it anew with a program that writes strict JSON",
    ),
    "classes_differ": Kind(
        "error",
        "labels of one split mean something else in the other",
        "It stops before the first step, where the two are its train and val sets.",
        "use the same categories in all splits, or choose common ones by the option classes",
    ),
    "images_not_found": Kind(
        "warning",
        "files that were not looked at may hold any defect",
        "It needs the folder.",
        "give --images DIR",
    ),
    # Ids and names.
    "image_id_twice": Kind(
        "error",
        "annotations cannot be told apart",
        _REFUSED,
        "give each image an id of its own; --fix drops what is unclear",
    ),
    "id_kind": Kind(
        "error",
        "ids that are numbers here and texts there never match",
        _REFUSED,
        "use one kind of ids; --fix gives it a new one",
    ),
    "annotation_id_twice": Kind(
        "error", "evaluation counts the two as one", _REFUSED, "give each annotation its own id; --fix does"
    ),
    "category_id_twice": Kind(
        "error",
        "labels of two classes are mixed",
        _REFUSED,
        "give each category its own id and label its objects anew",
    ),
    "category_name_twice": Kind(
        "error", "one class is learned as two that compete", _REFUSED, "merge the categories; --fix does"
    ),
    "category_name_similar": Kind(
        "warning",
        "names that differ by case or blanks are mostly one class, learned as two that compete",
        "It learns two classes.",
        "merge or rename the categories",
    ),
    "category_id_zero": Kind(
        "note",
        "some tools take 0 for the background",
        "densekit maps ids to labels and back, so 0 is a class like any other.",
        "nothing, unless another tool reads the file",
    ),
    "category_id_gaps": Kind(
        "note",
        "some tools take ids for labels and break on gaps",
        "densekit maps ids to labels and back.",
        "nothing, unless another tool reads the file",
    ),
    "unknown_image": Kind(
        "error",
        "the object belongs to no image",
        _REFUSED,
        "add the image or remove the annotation; --fix removes it",
    ),
    "unknown_category": Kind(
        "error",
        "the object has no class",
        _REFUSED,
        "add the category or correct the id; --fix removes the annotation",
    ),
    "name_leaves_folder": Kind(
        "error",
        "a name that leads out of the image folder reads files that are no data (it was not opened)",
        _REFUSED,
        "give a path relative to the image folder; --fix removes the image",
    ),
    "file_name_twice": Kind(
        "warning",
        "two entries share one image: each lacks the other's objects, which are then learned as background",
        "It sees the image twice, each time with a part of the objects.",
        "merge the two entries",
    ),
    # Boxes.
    "box_not_finite": Kind(
        "error",
        "one such number makes the loss NaN",
        "Refused, or dropped with on_bad_box: drop.",
        "correct or remove it; --fix does",
    ),
    "box_negative": Kind(
        "error",
        "width and height below 0 are mostly swapped corners",
        "Refused, or dropped with on_bad_box: drop.",
        "swap the corners; --fix does",
    ),
    "box_without_area": Kind(
        "error",
        "no anchor can match it, and relative sizes divide by 0",
        "Refused, or dropped with on_bad_box: drop.",
        "remove it, or draw it again; --fix removes it",
    ),
    "box_outside": Kind(
        "error",
        "there is nothing to see where it lies",
        "Refused, or dropped with on_bad_box: drop.",
        "correct or remove it; --fix removes it",
    ),
    "box_partly_outside": Kind(
        "warning", "it may belong to an image of another size", "It is cut at the edge.", "cut it; --fix does"
    ),
    "box_off_by_one": Kind(
        "warning",
        "coordinates that start at 1, or that include the last pixel, shift every box",
        "It is cut at the edge.",
        "check the export; --fix cuts it",
    ),
    "box_against_mask": Kind(
        "warning",
        "box and segmentation describe different regions: one of them is false",
        "Detection learns the box, segmentation the mask.",
        "draw the box around the mask; --fix does",
    ),
    "near_duplicate": Kind(
        "warning",
        "an object labelled twice teaches two boxes for it, and one of them counts as missed",
        "It learns both.",
        "remove one of them; --fix removes the later",
    ),
    "box_tiny": Kind(
        "note",
        "after resizing next to nothing is left of it",
        "Boxes under 1 px are dropped.",
        "train at a higher resolution",
    ),
    # Segmentations.
    "area_against_mask": Kind(
        "warning",
        "COCO's AP by size and crowd handling use the area",
        "Training does not use it; small, medium and large AP are wrong.",
        "compute it anew; --fix does",
    ),
    "polygon_too_short": Kind(
        "error",
        "fewer than three points enclose nothing",
        "Masks drawn from it stop the run; boxes are used as they are.",
        "draw it again; --fix drops the polygon",
    ),
    "segmentation_invalid": Kind(
        "error",
        "it cannot be drawn",
        "Masks drawn from it stop the run; boxes are used as they are.",
        "export it again; --fix puts the box in its place",
    ),
    "rle_size": Kind(
        "error",
        "run lengths of another image size give a scrambled mask",
        "Masks drawn from it stop the run; boxes are used as they are.",
        "export it again; --fix puts the box in its place",
    ),
    "segmentation_missing": Kind(
        "note",
        "most others of the file have one",
        "Masks drawn from it stop the run; detection does not need it.",
        "draw it, if masks are learned; --fix puts the box in its place",
    ),
    "crowd_without_rle": Kind(
        "warning",
        "COCO's tools expect run lengths of a crowd region and fail on others",
        "densekit reads it; other tools may not.",
        "write it as run lengths; --fix does",
    ),
    "crowd_flag": Kind("error", "iscrowd must be 0 or 1", _REFUSED, "set it to 0 or 1; --fix does"),
    # Image files.
    "image_missing": Kind(
        "error", "there is no such file", _AT_IMAGE, "copy the file, or remove the entry; --fix removes it"
    ),
    "image_name_differs": Kind(
        "error",
        "the file's name differs by case or blanks, which only some systems forgive",
        _AT_IMAGE,
        "rename the file or correct the entry; --fix does",
    ),
    "image_unreadable": Kind(
        "error", "it is no image, or damaged", _AT_IMAGE, "copy or export it again; --fix removes its entry"
    ),
    "image_truncated": Kind(
        "error",
        "it is cut off: the lower part is missing",
        _AT_IMAGE,
        "copy it again; --fix removes its entry",
    ),
    "image_too_large": Kind(
        "error",
        "decoding it may take all memory (it was not decoded)",
        _AT_IMAGE,
        "shrink or tile it, or raise data.max_pixels; --fix removes its entry",
    ),
    "image_size": Kind(
        "error",
        "boxes and masks were drawn on an image of another size",
        _AT_IMAGE,
        "restore the image that was annotated; --fix corrects the size where all boxes fit, else removes the entry",
    ),
    "image_extension": Kind(
        "warning",
        "tools that go by the name fail on it",
        "densekit goes by the content.",
        "rename the file or convert it",
    ),
    "image_orientation": Kind(
        "warning",
        "some viewers turn it and some do not, so annotations may be for either",
        "It is taken as it is where its stored size is that of the json, else turned.",
        "turn the pixels and remove the tag, then look at its boxes",
    ),
    "image_grey": Kind(
        "note", "it is grey in a set of colour images", "Its channel is repeated.", "nothing, if it is meant"
    ),
    "image_palette": Kind(
        "note", "a palette holds 256 colours at most", "It is read as RGB.", "nothing, if it is meant"
    ),
    "image_alpha": Kind(
        "note",
        "what is transparent still has colours",
        "Alpha is dropped.",
        "blend it with its background if it matters",
    ),
    "image_16_bit": Kind(
        "note",
        "16 bits become 8 bits by dividing by 257",
        "It is read as 8 bits.",
        "scale them yourself if it matters",
    ),
    "image_dark_16_bit": Kind(
        "warning",
        "its values use a small part of 16 bits, so 8 bits leave next to nothing of it",
        "It is nearly black.",
        "stretch the values to 0..65535, or save 8 bits",
    ),
    "image_no_annotation": Kind(
        "note",
        "it may be a negative example, or forgotten",
        "It is learned as background alone.",
        "label it, or leave it if nothing is on it",
    ),
    # Identical images.
    "image_identical": Kind(
        "warning",
        "the same image counts twice",
        "It sees the image more often than others.",
        "keep one of them",
    ),
    "image_near_identical": Kind(
        "warning",
        "an image that was saved anew, resized or retouched counts twice",
        "It sees the image more often than others.",
        "keep one of them",
    ),
    "leak_identical": Kind(
        "error",
        "the same image is learned and tested on: the numbers are too good",
        "Nothing stops it.",
        "take it out of one of the splits",
    ),
    "leak_near_identical": Kind(
        "error",
        "all but the same image is learned and tested on: the numbers are too good",
        "Nothing stops it.",
        "take it out of one of the splits",
    ),
    "image_similar": Kind(
        "note",
        "two pictures of one scene count it twice",
        "It sees the scene twice.",
        "keep one of them, if it matters",
    ),
    "leak_similar": Kind(
        "warning",
        "the same scene seems to be learned and tested on: the numbers may be too good",
        "Nothing stops it.",
        "look at the two; put all pictures of a scene into one split",
    ),
    # Mask files.
    "mask_missing": Kind("error", "the image has no mask", _STOPS, "add the mask, or remove the image"),
    "mask_without_image": Kind("error", "the mask has no image", _STOPS, "add the image, or remove the mask"),
    "mask_unreadable": Kind("error", "it cannot be read as class indices", _STOPS, "export it again as PNG"),
    "mask_size": Kind("error", "pixels of image and mask do not correspond", _STOPS, "restore the mask of this image"),
    "mask_values": Kind(
        "error",
        "values of no class come from resizing with interpolation, a JPEG on the way, or another numbering",
        _STOPS,
        "correct the mask, or name the value in classes or ignore",
    ),
    "mask_palette": Kind(
        "warning",
        "the same index has another colour than in the other masks: a program may have sorted the palette anew",
        "It reads indices, not colours, so classes are swapped.",
        "export the mask with the common palette, or give colors",
    ),
    "mask_all_ignored": Kind(
        "warning",
        "nothing can be learned from it",
        "It adds nothing to the loss.",
        "label it, or leave it out",
    ),
    "mask_one_value": Kind(
        "note", "the whole mask has one value", "It is learned as it is.", "look whether it was labelled"
    ),
    # The set as a whole.
    "class_without_objects": Kind(
        "note", "it cannot be learned", "The class stays untrained.", "label some, or leave the class out"
    ),
    "class_imbalance": Kind(
        "note",
        "rare classes are learned late and badly",
        "It learns what it sees most.",
        "collect more of the rare ones, or weigh classes in the loss",
    ),
    "anchors_misfit": Kind(
        "warning",
        "objects unlike any anchor are found late or not at all",
        "Each object still gets its best anchor, but few positives.",
        "set anchor_sizes and anchor_ratios as told",
    ),
    "anchors_fit": Kind(
        "note",
        "objects unlike any anchor are found late",
        "Each object gets its best anchor at least.",
        "anchors as told may help",
    ),
}
