"""What can be wrong with the files of images and masks."""

from __future__ import annotations

from densekit.doctor.kinds.kind import AT_IMAGE, REFUSED, STOPS, Kind

FILES: dict[str, Kind] = {
    # Image files.
    "image_missing": Kind(
        "error", "there is no such file", AT_IMAGE, "copy the file, or remove the entry; --fix removes it"
    ),
    "images_missing": Kind(
        "error",
        "the folder is another one than the names in the file are relative to",
        AT_IMAGE,
        "give the folder that holds them: --images DIR, or images of the data set in the config",
    ),
    "image_name_differs": Kind(
        "warning",
        "the name is spelled unlike the file's, and other tools do not find it",
        "It finds the file and says so.",
        "rename the file or correct the entry; --fix does",
    ),
    "image_unreadable": Kind(
        "error", "it is no image, or damaged", AT_IMAGE, "copy or export it again; --fix removes its entry"
    ),
    "image_truncated": Kind(
        "error",
        "it is cut off: the lower part is missing",
        AT_IMAGE,
        "copy it again; --fix removes its entry",
    ),
    "image_too_large": Kind(
        "error",
        "decoding it may take all memory (it was not decoded)",
        AT_IMAGE,
        "shrink or tile it, or raise data.max_pixels; --fix removes its entry",
    ),
    "image_not_finite": Kind(
        "error",
        "one such value makes every feature and loss that it meets meaningless",
        AT_IMAGE,
        "fill the values in, with the darkest one for instance, and save the image again",
    ),
    "size_missing": Kind(
        "error",
        "without it boxes cannot be checked, nor images be grouped",
        REFUSED,
        "write width and height; --fix takes them from the file",
    ),
    "image_size": Kind(
        "error",
        "boxes and masks were drawn on an image of another size",
        AT_IMAGE,
        "restore the image that was annotated; --fix corrects the size, scales the objects of images that were "
        "resized, and removes an image that its boxes do not fit",
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
        "Its annotated size decides; where that fits both, the other images of the set do, else it is turned.",
        "look at its boxes (--html); where they were drawn on the pixels as stored, set data.orientation: stored",
    ),
    "image_grey": Kind(
        "note", "it is grey in a set of colour images", "Its channel is repeated.", "nothing, if it is meant"
    ),
    "images_grey": Kind(
        "note",
        "three equal channels take the time and memory of three",
        "The channel is repeated, unless model.channels is 1.",
        "model.channels: 1 reads the one channel that there is",
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
    "image_deep": Kind(
        "note",
        "files of more than 8 bits do not say which value is white",
        "It takes one range for all of them, told at its start, and keeps every value as a float.",
        "set data.range where other values are black and white",
    ),
    "range_too_wide": Kind(
        "warning",
        "next to nothing of the range is used, so all images look alike: near-black, mostly",
        "It learns from that.",
        "set data.range to the values that are black and white",
    ),
    "image_dark": Kind(
        "warning",
        "its values are on another scale than those of the other images",
        "It is nearly black.",
        "save it on the scale of the others",
    ),
    "image_no_annotation": Kind(
        "note",
        "it may be a negative example, or forgotten",
        "It is learned as background alone.",
        "label it, or leave it if nothing is on it",
    ),
    # Mask files.
    "mask_missing": Kind("error", "the image has no mask", STOPS, "add the mask, or remove the image"),
    "mask_without_image": Kind("error", "the mask has no image", STOPS, "add the image, or remove the mask"),
    "mask_unreadable": Kind("error", "it cannot be read as class indices", STOPS, "export it again as PNG"),
    "mask_size": Kind("error", "pixels of image and mask do not correspond", STOPS, "restore the mask of this image"),
    "mask_values": Kind(
        "error",
        "values of no class come from resizing with interpolation, a JPEG on the way, or another numbering",
        STOPS,
        "correct the mask, or name the value in classes or ignore",
    ),
    "mask_value_unnamed": Kind(
        "error",
        "a value that most masks hold is a class, or a region to leave out, without its name",
        STOPS,
        "name the value in classes (classes: {name: value}) or in ignore; counts of classes are made after that",
    ),
    "mask_instances": Kind(
        "error",
        "values that number objects tell one object from the next, not what they are",
        "It stops at values of no class; where the numbers are classes too, it learns something false.",
        "merge the values of a class into one (numpy.minimum(mask, 1) for one class) and save the masks as PNG",
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
}
