"""What can be wrong with a set as a whole: images that occur twice, classes, anchors."""

from __future__ import annotations

from densekit.doctor.kinds.kind import Kind

SETS: dict[str, Kind] = {
    "files_left_out": Kind(
        "note",
        "images under such endings are not learned from",
        "It does not see them.",
        "convert them to PNG or JPEG, if they are images",
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
        "an image that was saved anew, at another quality or size, counts twice",
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
        "an image that was saved anew is learned and tested on: the numbers are too good",
        "Nothing stops it.",
        "take it out of one of the splits",
    ),
    "image_similar": Kind(
        "note",
        "several pictures of one scene, such as the frames of a video, count it several times",
        "It sees the scene more often than others.",
        "keep them in one split; fewer of them may do",
    ),
    "leak_similar": Kind(
        "warning",
        "the same scene seems to be learned and tested on: the numbers may be too good",
        "Nothing stops it.",
        "look at the two; put all pictures of a scene into one split",
    ),
    # The boxes of a set, judged together.
    "box_layout": Kind(
        "error",
        "read as COCO's x, y, width, height in pixels, the boxes surround something else, or nothing",
        "It is refused; it would learn false boxes, or none.",
        "write x, y, width, height in pixels; --fix does where one way of writing alone fits",
    ),
    "box_layout_unlikely": Kind(
        "warning",
        "boxes in percent, read as pixels, surround nothing",
        "It takes them as pixels.",
        "look at some of them; write x, y, width, height in pixels",
    ),
    "boxes_of_other_images": Kind(
        "error",
        "the images had another size when the boxes were drawn, or were cut, or are not those of the file",
        "It is refused; it would learn false boxes.",
        "restore the images that were annotated, or scale the boxes as the images were",
    ),
    "boxes_without_area": Kind(
        "error",
        "points are no boxes: nothing matches them",
        "It is refused.",
        "export widths and heights too, or draw boxes around the points",
    ),
    "crowds_alone": Kind(
        "error",
        "a detector ignores crowds, so it learns nothing, and its AP is not defined",
        "A detector is refused; masks are learned.",
        "set iscrowd to 0 where an annotation is one object (tools that write run lengths often set 1)",
    ),
    "crowds_mostly": Kind(
        "warning",
        "a detector ignores crowds: it learns from the few others alone",
        "It ignores what lies in crowds.",
        "set iscrowd to 0 where an annotation is one object (tools that write run lengths often set 1)",
    ),
    "class_of_crowds": Kind(
        "warning",
        "a detector ignores crowds, so it does not learn the class, and its AP is not defined",
        "The class stays untrained.",
        "set iscrowd to 0 where an annotation is one object, or leave the class out",
    ),
    "area_of_set": Kind(
        "warning",
        "COCO's AP by size goes by the area",
        "Training does not use it; small, medium and large AP are wrong.",
        "compute it anew; --fix does",
    ),
    "segmentations_in_parts": Kind(
        "error",
        "read as pixels, the polygons enclose nothing",
        "Masks drawn from them are empty; boxes are used as they are.",
        "write the polygons in pixels; --fix does",
    ),
    "no_objects": Kind(
        "warning",
        "nothing can be learned from it, and no AP is defined on it",
        "To learn from it is refused; with such a validation set the last weights are kept, not the best.",
        "label some images, or give the file that has the annotations",
    ),
    "max_detections": Kind(
        "warning",
        "objects beyond the limit can't be found",
        "It learns them; predictions and AP leave them out.",
        "raise the limits as told",
    ),
    # The masks of a set, judged together.
    "masks_of_one_class": Kind(
        "error",
        "where every pixel is of one class there is nothing to tell it from",
        "It learns to say this class everywhere.",
        "if an ignored value is the object (0/255 masks), give it to the class: classes: {background: 0, object: 255}",
    ),
    "mask_255_ignored": Kind(
        "error",
        "where 255 is the object, as in 0/255 masks, the object is ignored and its class has no pixel to learn from",
        "It is refused.",
        "give the class its value, as told; where 255 is ignored indeed, say so by ignore: [255]",
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
        "paste anchor_sizes and anchor_ratios as told into the head's options",
    ),
    "anchors_fit": Kind(
        "note",
        "objects unlike any anchor are found late",
        "Each object gets its best anchor at least.",
        "anchors as told may help",
    ),
}
