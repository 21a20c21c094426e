"""What can be wrong with a COCO json: the file, its ids and names, its boxes and segmentations."""

from __future__ import annotations

from densekit.doctor.kinds.kind import REFUSED, STOPS, Kind

ANNOTATIONS: dict[str, Kind] = {
    # The annotation file as a whole.
    "file_unreadable": Kind(
        "error",
        "nothing can be learned from a file that cannot be read",
        REFUSED,
        "restore or export the file again",
    ),
    "label_unreadable": Kind(
        "error",
        "a label that cannot be read teaches nothing, or something false",
        REFUSED,
        "correct it as told, or remove it",
    ),
    "labels_unread": Kind(
        "error",
        "nothing was examined but the images",
        "It reads labels that its config names, and no others.",
        "give the folder as its program exports it: COCO, YOLO, Pascal VOC, LabelMe or CSV, with its images",
    ),
    "array_empty": Kind(
        "error", "there is nothing to learn from", REFUSED, "export the file with its images and categories"
    ),
    "row_malformed": Kind(
        "error",
        "a row without the keys and types of COCO has no meaning",
        REFUSED,
        "correct the row; --fix does where the rest of the file tells how, else it removes the row",
    ),
    "number_as_text": Kind(
        "warning",
        "other tools, COCO's own first, take the text '1' and the number 1 for two things",
        "It reads the number.",
        "write numbers; --fix does",
    ),
    "box_missing": Kind(
        "warning",
        "other tools need a box",
        "It takes the box around the segmentation.",
        "write the box; --fix does",
    ),
    "name_missing": Kind(
        "note",
        "other tools need a name",
        "It calls a category by its id, and an image by the end of its coco_url.",
        "write the name; --fix does",
    ),
    "data_set_unusable": Kind(
        "error",
        "the data set of the config cannot be built",
        STOPS,
        "correct the config or the files as told",
    ),
    "refused_by_training": Kind(
        "error",
        "training reads files more strictly than the checks do",
        REFUSED,
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
        REFUSED,
        "give each image an id of its own; --fix drops what is unclear",
    ),
    "id_kind": Kind(
        "error",
        "ids that are numbers here and texts there never match",
        REFUSED,
        "use one kind of ids; --fix gives the image a new one",
    ),
    "annotation_id_twice": Kind(
        "error", "evaluation counts the two as one", REFUSED, "give each annotation its own id; --fix does"
    ),
    "category_id_twice": Kind(
        "error",
        "labels of two classes are mixed",
        REFUSED,
        "give each category its own id and label its objects anew",
    ),
    "category_name_twice": Kind(
        "error", "one class is learned as two that compete", REFUSED, "merge the categories; --fix does"
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
        REFUSED,
        "add the image or remove the annotation; --fix does, unless the id is the name of an image's file",
    ),
    "unknown_category": Kind(
        "error",
        "the object has no class",
        REFUSED,
        "add the category or correct the id; --fix removes the annotation",
    ),
    "name_leaves_folder": Kind(
        "error",
        "a name that leads out of the image folder reads files that are no data (it was not opened)",
        REFUSED,
        "give a path relative to the image folder; --fix does where the folder has the file, else it removes the image",
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
    "crowd_flag": Kind("error", "iscrowd must be 0 or 1", REFUSED, "set it to 0 or 1; --fix does"),
}
