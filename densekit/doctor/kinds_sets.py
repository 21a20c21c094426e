"""What can be wrong with a set as a whole: images that occur twice, classes, anchors."""

from __future__ import annotations

from densekit.doctor.kind import Kind

SETS: dict[str, Kind] = {
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
