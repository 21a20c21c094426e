"""The ``masks`` data set: a folder of images and a folder of mask files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from densekit.data.formats.masks.files import Labels, MaskCode, read_classes, read_colour_table
from densekit.data.formats.masks.pairs import Pair, pairs_by_list, pairs_by_name, part_of
from densekit.data.formats.segmentation import SegmentationDataset
from densekit.data.images.present import absent
from densekit.data.images.read import MAX_PIXELS
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import IGNORE, Classes, DensekitError, nearest

Value = Annotated[int, pydantic.Field(ge=0, lt=2**16)]
Channel = Annotated[int, pydantic.Field(ge=0, le=255)]
Colour = tuple[Channel, Channel, Channel]


class MaskFolder:
    """Pairs of files in two folders."""

    def __init__(self, images: Path, masks: Path, pairs: Sequence[Pair], code: MaskCode, max_pixels: int) -> None:
        self.images, self.masks, self.pairs, self.code, self.max_pixels = images, masks, list(pairs), code, max_pixels
        self.classes = code.classes

    def __len__(self) -> int:
        return len(self.pairs)

    def image_id(self, index: int) -> str:
        """The path relative to the image folder."""
        return self.pairs[index].image

    def image_path(self, index: int) -> Path:
        """The image file."""
        return self.images / self.pairs[index].image

    def mask_path(self, index: int) -> Path:
        """The mask file."""
        return self.masks / self.pairs[index].mask

    def missing_files(self) -> list[Path]:
        """The image and mask files that are not there."""
        images, masks = [pair.image for pair in self.pairs], [pair.mask for pair in self.pairs]
        lost = [self.images / images[i] for i in absent(self.images, images)]
        return [*lost, *(self.masks / masks[i] for i in absent(self.masks, masks))]

    def mask(self, index: int) -> Labels:
        """Labels of the mask file."""
        return self.code.read(self.mask_path(index), self.max_pixels)

    def mask_name(self, index: int) -> str:
        """The mask file, for messages."""
        return str(self.mask_path(index))

    def aspect_ratios(self) -> None:
        """Not known before the images are decoded."""
        return None


@DATASETS.register
def masks(
    *,
    images: Path,
    masks: Path,
    classes: Path | tuple[str, ...] | dict[str, int] | None = None,
    ignore: tuple[Value, ...] | None = None,
    colors: Path | dict[str, Colour] | None = None,
    ignore_colors: tuple[Colour, ...] = (),
    multi_label: bool = False,
    image_suffix: str | None = None,
    mask_suffix: str | None = None,
    list: Path | None = None,
    fraction: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None,
    part: Literal["first", "rest"] = "first",
    split_seed: int = 0,
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
) -> SegmentationDataset:
    """Images and class-index, palette, 0/255 or colour-coded masks.

    Args:
        images: folder of images, with subfolders.
        masks: folder of masks: PNG, TIFF, BMP, or .npy.
        classes: names for the values 0, 1, 2, ...; or values by name (``{background: 0, cell: 255}``); or a text file
            with a name a line. May be left out with ``colors``.
        ignore: values that are not looked at; None: 255, unless a class has it.
        colors: colour of each class by name, for colour-coded masks, or a text file with ``name,red,green,blue`` a
            line. Palette masks are then read by their colours too.
        ignore_colors: colours that are not looked at; in a file of colours their lines are no classes.
        multi_label: the masks are .npy layers [K, H, W] of 0, 1 and 255 (ignored).
        image_suffix: end of an image's name after the part that it shares with its mask, such as
            ``_leftImg8bit.png``; None: any image ending.
        mask_suffix: likewise of a mask's, such as ``_L.png``.
        list: text file that names the images to use: the shared part of the name, or an image and a mask a line.
        fraction: use this part of the images, chosen by ``split_seed``.
        part: ``first`` is that part, ``rest`` what it leaves: two data sets that share nothing.
        split_seed: of the choice; the same for both parts.
        transforms: see ``SegmentationDataset``.
        seed: see ``SegmentationDataset``.
        training: see ``SegmentationDataset``.
        channels: see ``SegmentationDataset``.
        max_pixels: see ``SegmentationDataset``.

    Raises:
        DensekitError: a folder, a mask or an image is missing, or classes and colours contradict one another.
    """
    if isinstance(colors, Path):
        colors = {n: c for n, c in read_colour_table(colors).items() if c not in ignore_colors}
    code = _mask_code(classes, ignore, colors, ignore_colors, multi_label)
    if list is None:
        pairs = pairs_by_name(images, masks, image_suffix, mask_suffix)
    else:
        pairs = pairs_by_list(list, images, masks, image_suffix, mask_suffix)
    source = MaskFolder(images, masks, _part(pairs, fraction, part == "rest", split_seed), code, max_pixels)
    return SegmentationDataset(
        source, transforms=transforms, seed=seed, training=training, channels=channels, max_pixels=max_pixels
    )


def _part(pairs: Sequence[Pair], fraction: float | None, rest: bool, seed: int) -> Sequence[Pair]:
    if fraction is not None:
        return part_of(pairs, fraction, rest, seed)
    if rest:
        raise DensekitError("part: 'rest' is what a fraction leaves; give the fraction too, such as 0.8")
    return pairs


def _mask_code(
    classes: Path | tuple[str, ...] | Mapping[str, int] | None,
    ignore: tuple[int, ...] | None,
    colors: Mapping[str, Colour] | None,
    ignore_colors: tuple[Colour, ...],
    multi_label: bool,
) -> MaskCode:
    if classes is None and colors is None:
        raise DensekitError("classes: give the names of the masks' values, or a text file with a name a line")
    if multi_label and (colors or ignore_colors):
        raise DensekitError("colors: layers of 0 and 1 have no colours; leave colors or multi_label out")
    if ignore_colors and colors is None:
        raise DensekitError("ignore_colors: has no effect without colors; give the colour of each class as colors")
    known = read_classes(classes) if classes is not None else read_classes(tuple(colors or ()))
    ignored = (IGNORE,) if ignore is None else ignore
    return MaskCode(known, ignored, _colours(known, colors), ignore_colors, multi_label, ignore is not None)


def _colours(classes: Classes, colors: Mapping[str, Colour] | None) -> tuple[Colour, ...] | None:
    if colors is None:
        return None
    for name in colors:
        if name not in classes.names:
            raise DensekitError(f"colors.{name}: there is no class {name!r}; {nearest(name, classes.names)}")
    for name in classes.names:
        if name not in colors:
            raise DensekitError(f"colors: class {name!r} has no colour; give it one, or take it out of classes")
    return tuple(colors[name] for name in classes.names)
