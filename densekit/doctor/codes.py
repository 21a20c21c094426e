"""Every defect that the doctor knows: how bad it is, why it hurts, what training does with it, what helps.

Severities: an ``error`` stops training or makes its numbers wrong, a ``warning`` costs quality without a word, a
``note`` is told and not condemned.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Code:
    """One kind of defect.

    Attributes:
        severity: how bad it is.
        title: the defect in a few words.
        why: why it hurts.
        training: what a densekit training run does with it.
        remedy: what to do about it.
        fixed: whether ``--fix`` mends it.
    """

    severity: Severity
    title: str
    why: str
    training: str
    remedy: str
    fixed: bool = False


_REFUSES = "refuses to start and names it"
_STOPS = "stops at it (data.on_bad_image: skip leaves it out)"
_BAD_BOX = "refuses to start; on_bad_box: drop leaves the box out"

CODES: dict[str, Code] = {
    # The annotation file.
    "json-unreadable": Code(
        "error",
        "not a readable JSON file",
        "Nothing can be read from it.",
        _REFUSES,
        "Write the file again, or restore it from a copy.",
    ),
    "json-not-coco": Code(
        "error",
        "not COCO's structure",
        "A COCO file is an object with the lists images, annotations and categories.",
        _REFUSES,
        "Add what is missing, or convert the file to COCO.",
    ),
    "entry-malformed": Code(
        "error",
        "entry without what an entry needs",
        "It can't be told what the entry means.",
        _REFUSES,
        "Complete or remove the entry.",
        fixed=True,
    ),
    # Ids and names.
    "image-id-duplicate": Code(
        "error",
        "image id twice",
        "Annotations of that id belong to one of several images, and nobody can tell which.",
        _REFUSES,
        "Give each image an id of its own. Equal entries are merged by --fix; others need a person.",
        fixed=True,
    ),
    "annotation-id-duplicate": Code(
        "error",
        "annotation id twice",
        "Evaluators keep one annotation per id and lose the others: AP comes out wrong.",
        _REFUSES,
        "Give each annotation an id of its own.",
        fixed=True,
    ),
    "annotation-id-zero": Code(
        "note",
        "annotation id 0",
        "COCO's own evaluator takes a match with annotation 0 for no match: AP comes out too low.",
        "is not harmed: densekit numbers annotations by itself when it evaluates",
        "Number annotations from 1 if other tools are to read the file.",
        fixed=True,
    ),
    "category-id-duplicate": Code(
        "error",
        "category id twice",
        "Annotations of that id belong to one of several classes.",
        _REFUSES,
        "Give each category an id of its own. Equal entries are merged by --fix; others need a person.",
        fixed=True,
    ),
    "category-id-zero": Code(
        "note",
        "category id 0",
        "Some tools take class 0 for the background.",
        "is not harmed: it uses the ids as they are",
        "Nothing is needed for densekit.",
    ),
    "category-id-gaps": Code(
        "note",
        "category ids with gaps",
        "Tools that take an id for a position mix up the classes.",
        "is not harmed: predictions come back in the file's own ids",
        "Nothing is needed for densekit.",
    ),
    "category-name-duplicate": Code(
        "error",
        "category name twice",
        "One name stands for two classes, so predictions can't be told apart.",
        _REFUSES,
        "Rename one, or merge the two categories.",
    ),
    "category-name-similar": Code(
        "warning",
        "category names that differ by case or blanks only",
        "This is most often one class under two names: the model is punished for every good guess between them.",
        "learns them as two classes",
        "Merge the two categories, or give them names that differ.",
    ),
    "image-listed-twice": Code(
        "warning",
        "image file in two entries",
        "The annotations of the image are spread over two entries: each half calls the other half background.",
        "learns the image twice, each time with a part of its annotations",
        "Merge the two entries.",
    ),
    "annotation-image-unknown": Code(
        "error",
        "annotation of an unknown image",
        "Its object is missing from the image that it belongs to.",
        _REFUSES,
        "Correct image_id, or remove the annotation.",
        fixed=True,
    ),
    "annotation-category-unknown": Code(
        "error",
        "annotation of an unknown category",
        "It has no class that could be learned.",
        _REFUSES,
        "Add the category, or correct category_id. --fix removes the annotation.",
        fixed=True,
    ),
    # Boxes.
    "box-malformed": Code(
        "error",
        "no box, or not four numbers",
        "A detector has nothing to learn from it.",
        _REFUSES,
        "Write bbox as [x, y, width, height]. --fix takes the box from the mask, or removes the annotation.",
        fixed=True,
    ),
    "box-not-finite": Code(
        "error",
        "box with NaN or infinity",
        "The loss becomes NaN and takes every weight with it.",
        _BAD_BOX,
        "Correct the box. --fix takes it from the mask, or removes the annotation.",
        fixed=True,
    ),
    "box-negative-size": Code(
        "error",
        "box of negative size",
        "Width or height is below zero: often x1, y1, x2, y2 in the wrong order.",
        _BAD_BOX,
        "Correct the box. --fix takes it from the mask, or removes the annotation.",
        fixed=True,
    ),
    "box-zero-size": Code(
        "error",
        "box of zero size",
        "A box without area overlaps nothing, so it can be neither learned nor found: most often a slip of the mouse.",
        _BAD_BOX,
        "Draw the box again. --fix takes it from the mask, or removes the annotation.",
        fixed=True,
    ),
    "box-outside": Code(
        "error",
        "box wholly outside of its image",
        "There is nothing at that place: often the image was resized, cropped or exchanged after labelling.",
        _BAD_BOX,
        "Check that the image is the one that was labelled. --fix removes the annotation.",
        fixed=True,
    ),
    "box-partly-outside": Code(
        "warning",
        "box partly outside of its image",
        "The part outside can't be seen: often the box or the image's size is wrong.",
        "cuts the box at the image's edge",
        "Check the box. --fix cuts it at the edge.",
        fixed=True,
    ),
    "box-off-by-one": Code(
        "warning",
        "box one pixel over the edge",
        "The tool that wrote it counts pixels from 1, or their last one in: all of its boxes are then shifted a bit.",
        "cuts the box at the image's edge",
        "Check how the boxes were converted. --fix cuts it at the edge.",
        fixed=True,
    ),
    "box-under-one-pixel": Code(
        "warning",
        "box thinner than a pixel",
        "There is next to nothing to see in it.",
        "leaves the box out as soon as a transform moves it",
        "Draw the box again, or remove the annotation.",
    ),
    "box-near-duplicate": Code(
        "warning",
        "two boxes of a class on one object",
        "The object counts twice in the loss, and a detector that finds it once is told that it missed one.",
        "learns both boxes",
        "Keep one of the two. --fix removes the later one.",
        fixed=True,
    ),
    "box-two-classes": Code(
        "note",
        "one box with two classes",
        "Two classes at the very same place: often a relabelled object whose first label was left.",
        "learns both, one against the other",
        "Look at the two, and remove the wrong one if there is one.",
    ),
    # Masks of annotations.
    "polygon-too-few-points": Code(
        "error",
        "polygon of fewer than three points",
        "It encloses nothing; some tools read four numbers as a box, others stop.",
        "is not harmed in detection; coco_masks stops at it",
        "Draw the polygon again. --fix removes the polygon.",
        fixed=True,
    ),
    "segmentation-malformed": Code(
        "error",
        "segmentation that can't be decoded",
        "Its numbers break the format.",
        "is not harmed in detection; coco_masks stops at it",
        "Export the annotation again. --fix removes the segmentation.",
        fixed=True,
    ),
    "rle-wrong-size": Code(
        "error",
        "run lengths for an image of another size",
        "The mask belongs to another image, or the image was resized.",
        "is not harmed in detection; coco_masks stops at it",
        "Export the mask at the image's size. --fix removes the segmentation.",
        fixed=True,
    ),
    "crowd-without-rle": Code(
        "warning",
        "crowd without run lengths",
        "COCO gives the region of a crowd as run lengths; evaluators of masks fail on anything else.",
        "ignores the region of the crowd's box",
        "Write the region as run lengths. --fix makes them of the polygons, or of the box.",
        fixed=True,
    ),
    "area-mismatch": Code(
        "warning",
        "area that does not fit",
        "AP of small, medium and large objects goes by the area.",
        "is not harmed; evaluation counts the object in the wrong size class",
        "Compute the area anew from the mask.",
        fixed=True,
    ),
    "box-against-mask": Code(
        "warning",
        "box that does not fit its mask",
        "One of the two is wrong: boxes and masks teach different objects.",
        "learns the box (detection) or the mask (coco_masks)",
        "Compute the box from the mask, or correct the mask.",
    ),
    # Images.
    "image-missing": Code(
        "error",
        "image file missing",
        "There is nothing to look at.",
        _STOPS,
        "Copy the file to its place, or correct file_name. --fix removes the image and its annotations.",
        fixed=True,
    ),
    "image-outside-folder": Code(
        "error",
        "file name that leaves the image folder",
        "A file from elsewhere could be read under this name; the doctor did not open it.",
        _REFUSES,
        "Give a path relative to the image folder. --fix removes the image and its annotations.",
        fixed=True,
    ),
    "image-unreadable": Code(
        "error",
        "not an image that can be decoded",
        "The file is empty, damaged, or something else than an image.",
        _STOPS,
        "Copy the file again. --fix removes the image and its annotations.",
        fixed=True,
    ),
    "image-truncated": Code(
        "error",
        "image cut off before its end",
        "A copy or download stopped early: the lower part is missing.",
        _STOPS,
        "Copy the file again. --fix removes the image and its annotations.",
        fixed=True,
    ),
    "image-too-large": Code(
        "error",
        "image over the limit of pixels",
        "Decoding it could fill the memory; the doctor did not decode it.",
        _STOPS,
        "Shrink or tile the image, or raise data.max_pixels.",
    ),
    "image-extension": Code(
        "warning",
        "file name's ending and content differ",
        "Tools that go by the name read it wrongly or not at all.",
        "is not harmed: it goes by the content",
        "Rename the file, or convert it.",
    ),
    "image-exif-orientation": Code(
        "warning",
        "EXIF tag turns the image",
        "Some tools turn it and some do not: boxes drawn in one and read in the other lie elsewhere.",
        "takes the orientation whose size fits the annotations; as stored where both fit",
        "Look whether the boxes fit; then store the image upright, without the tag.",
    ),
    "image-size-differs": Code(
        "error",
        "image of another size than the annotations say",
        "The boxes belong to an image of that size: this one was resized, cropped or exchanged.",
        _STOPS,
        "Restore the image that was labelled, or scale the boxes with the size.",
    ),
    "image-grey": Code(
        "note",
        "grey image among images of colour",
        "It looks different from the others.",
        "repeats the grey for each colour",
        "Nothing is needed if images at hand will be grey too.",
    ),
    "image-palette": Code(
        "note",
        "palette image",
        "It holds 256 colours at most.",
        "looks its colours up",
        "Nothing is needed.",
    ),
    "image-alpha": Code(
        "note",
        "image with an alpha channel",
        "What is transparent has a colour all the same, and tools differ in what they show there.",
        "drops the alpha channel and takes the colours as stored",
        "Nothing is needed if the alpha is opaque; else blend it with a background.",
    ),
    "image-16-bit": Code(
        "note",
        "image of 16 bits",
        "Eight of the bits are lost; scans that use few of the 65536 values become nearly black.",
        "divides by 257 to 8 bits",
        "Stretch the values before, or save floats from 0 to 255 (TIFF, npy).",
    ),
    "image-without-annotations": Code(
        "note",
        "image without annotations",
        "Right if it shows no object; else its objects are learned as background.",
        "learns the whole image as background",
        "Look whether it is empty indeed.",
    ),
    # The same image twice.
    "image-identical": Code(
        "warning",
        "byte-identical images",
        "The image counts twice, and its two annotations may contradict each other.",
        "learns it twice",
        "Keep one of the two.",
    ),
    "image-near-identical": Code(
        "note",
        "nearly identical images",
        "They add little, and must not be shared out to different splits.",
        "learns both",
        "Keep them in one split, or keep one.",
    ),
    "leak-identical": Code(
        "error",
        "same image in two splits",
        "The model is examined on what it learned by heart: its numbers are too good.",
        "learns it; evaluation then counts it as unseen",
        "Remove it from one of the splits.",
    ),
    "leak-near-identical": Code(
        "warning",
        "nearly the same image in two splits",
        "The model is examined on what it all but saw: its numbers are too good.",
        "learns it; evaluation then counts its twin as unseen",
        "Put both into one split.",
    ),
    # Masks.
    "mask-missing": Code(
        "error",
        "image without a mask",
        "There is nothing to learn from.",
        _REFUSES,
        "Add the mask, or take the image away; set mask_suffix if the names follow another rule.",
    ),
    "mask-without-image": Code(
        "error",
        "mask without an image",
        "There is nothing to look at.",
        _REFUSES,
        "Add the image, or take the mask away; set image_suffix if the names follow another rule.",
    ),
    "mask-unreadable": Code(
        "error",
        "mask that can't be read",
        "The file is damaged, or of a kind that can't hold class indices.",
        "stops at it",
        "Save the mask again as PNG with a class index a pixel.",
    ),
    "mask-colours": Code(
        "error",
        "mask of colours",
        "A mask holds a class index a pixel; what a colour means is not known.",
        "stops at it, unless colors gives the colour of each class",
        "Convert it to indices, or set colors.",
    ),
    "mask-size-differs": Code(
        "error",
        "mask of another size than its image",
        "Its pixels belong elsewhere.",
        "stops at it",
        "Export the mask at the image's size.",
    ),
    "mask-value-unknown": Code(
        "error",
        "mask value of no class",
        "It has no name and no place in the model.",
        "stops at it",
        "Correct the mask, or name the value in classes or ignore.",
    ),
    "mask-0-255": Code(
        "error",
        "mask of 0 and 255 only",
        "255 is what is ignored: the object itself is never learned.",
        "learns that everything is background",
        "Set classes: {background: 0, object: 255}, or write 1 for the object.",
    ),
    "mask-all-ignored": Code(
        "warning",
        "mask with every pixel ignored",
        "The image teaches nothing.",
        "reads it and learns nothing from it",
        "Label it, or take it away.",
    ),
    "mask-palette": Code(
        "warning",
        "mask with a palette of its own",
        "An editor that sorted or shortened the palette has changed the indices without a trace.",
        "takes the indices, not the colours",
        "Compare it with its neighbours; save it again with the palette of the others.",
    ),
    # The set as a whole.
    "class-imbalance": Code(
        "note",
        "classes of very different frequency",
        "The rare ones are learned last and worst; a mean over images hides it.",
        "learns from what is there",
        "Look at the numbers per class; collect more of the rare ones, or weigh them.",
    ),
    "class-without-objects": Code(
        "warning",
        "class that never occurs",
        "It can't be learned, or its number can't be measured, here.",
        "learns never to predict it",
        "Add examples, or leave the class out by classes.",
    ),
    "classes-differ": Code(
        "error",
        "splits with different classes",
        "A prediction's id means different things in the two.",
        _REFUSES,
        "Give all splits the same categories.",
    ),
    "anchors-misfit": Code(
        "warning",
        "objects that no anchor fits",
        "An object whose best anchor overlaps it by less than a half is hardly proposed.",
        "takes its best anchor as positive all the same, and finds such objects late",
        "Use anchors that fit, or resize to a larger size.",
    ),
}
