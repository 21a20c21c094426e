"""The ``csv`` data set: one table of boxes, a row a box.

Columns are known by their usual names in any case (``filename``, ``xmin``, ``ymin``, ``xmax``, ``ymax``, ``class``; or
``x``, ``y``, ``w``, ``h``); a table without a header has them as ``file, x1, y1, x2, y2, class``. A row with a file and
no box is an image without objects.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from csv import Error as CsvError
from csv import reader
from pathlib import Path
from typing import Literal

from densekit.data.formats.coco.coco import CocoDataset
from densekit.data.formats.labels.dataset import labelled_images
from densekit.data.formats.labels.listing import (
    files_below,
    images_below,
    inner_folder,
    left_aside,
    listed,
    role_folders,
    role_of,
)
from densekit.data.formats.labels.records import Found, LabelledObject, Layout, Record
from densekit.data.images.names import FileNames
from densekit.data.images.read import MAX_PIXELS
from densekit.data.transforms.pipeline import Pipeline
from densekit.registry import DATASETS
from densekit.types import DensekitError, nearest

_HEAD = 4096  # bytes by which a table is told

_SPELLINGS = {
    "file": ("filename", "filepath", "file", "image", "imagename", "imageid", "imagepath", "imagefile", "img", "path"),
    "class": ("class", "classname", "label", "labelname", "category", "categoryname", "name", "cls", "object"),
    "left": ("xmin", "x1", "left", "bboxxmin", "boxxmin", "bboxx1", "xtopleft", "x", "bboxx", "boxx", "bboxleft"),
    "top": ("ymin", "y1", "top", "bboxymin", "boxymin", "bboxy1", "ytopleft", "y", "bboxy", "boxy", "bboxtop"),
    "right": ("xmax", "x2", "right", "bboxxmax", "boxxmax", "bboxx2", "xbottomright", "bboxright"),
    "bottom": ("ymax", "y2", "bottom", "bboxymax", "boxymax", "bboxy2", "ybottomright", "bboxbottom"),
    "box width": ("w", "bboxw", "bboxwidth", "boxwidth", "width"),
    "box height": ("h", "bboxh", "bboxheight", "boxheight", "height"),
    "crowd": ("iscrowd", "crowd", "difficult", "isgroupof"),
}
_PLAIN = ("file", "left", "top", "right", "bottom", "class")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table's columns by what they are, and its delimiter."""

    columns: dict[str, int]
    delimiter: str
    header: bool

    @property
    def corners(self) -> bool:
        """Whether a box is two corners, and not a corner and a size."""
        return "right" in self.columns


@dataclasses.dataclass(frozen=True)
class CsvReader:
    """Reads a whole table.

    Attributes:
        chosen: names of images to use; None: all.
    """

    chosen: frozenset[str] | None = None

    def __call__(self, path: Path) -> list[Record]:
        """A record an image, in the order in which the images first occur."""
        table = open_table(path)
        records: dict[str, Record] = {}
        for line, cells in _rows(path, table):
            name = _cell(cells, table, "file")
            record = records.setdefault(name, Record(name))
            try:
                if not name:
                    raise ValueError("the row names no file; every row needs its image")
                if (one := _object(cells, table, f"{path.name}:{line}")) is not None:
                    record.objects.append(one)
            except ValueError as error:
                record.problems.append(f"{path}:{line}: {error}")
        found = list(records.values())
        return [r for r in found if self.chosen is None or r.image in self.chosen]


def open_table(path: Path) -> Table:
    """Look at a table's first row.

    Raises:
        DensekitError: it is no table of boxes.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD).decode("utf-8-sig", "replace")
    except OSError as error:
        raise DensekitError(f"{path}: cannot be read ({error.strerror}); give a table of boxes") from None
    if "\0" in head:
        raise DensekitError(f"{path}: no text in UTF-8; save the table as CSV in UTF-8")
    first = next((line for line in head.splitlines() if line.strip()), "")
    delimiter = max(",;\t|", key=first.count)
    cells = next(reader([first], delimiter=delimiter), [])
    if len(cells) == len(_PLAIN) and all(_is_number_or_empty(cell) for cell in cells[1:5]):
        return Table({what: i for i, what in enumerate(_PLAIN)}, delimiter, header=False)
    known = {_folded(cell): i for i, cell in reversed(list(enumerate(cells)))}
    columns = {
        what: known[next(n for n in names if n in known)]
        for what, names in _SPELLINGS.items()
        if any(name in known for name in names)
    }
    box = ("left", "top", "right", "bottom") if "right" in columns else ("left", "top", "box width", "box height")
    lacking = [what for what in ("file", *box, "class") if what not in columns]
    if lacking:
        what = lacking[0]
        raise DensekitError(
            f"{path}: no column is the {what} of a box ({', '.join(_SPELLINGS[what][:3])}); "
            f"{nearest(_SPELLINGS[what][0], [cell.strip() for cell in cells])}"
        )
    return Table(columns, delimiter, header=True)


def _folded(cell: str) -> str:
    return "".join(c for c in cell.lower() if c.isalnum())


def _is_number_or_empty(cell: str) -> bool:
    try:
        return not cell.strip() or math.isfinite(float(cell))
    except ValueError:
        return False


def _rows(path: Path, table: Table) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each row behind the header."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = reader(file, delimiter=table.delimiter)
        header = table.header
        try:
            for cells in rows:
                if not any(cell.strip() for cell in cells):
                    continue
                if header:
                    header = False
                    continue
                yield rows.line_num, cells
        except CsvError as error:
            raise DensekitError(f"{path}:{rows.line_num}: not a table ({error}); correct the file") from None


def _cell(cells: Sequence[str], table: Table, what: str) -> str:
    at = table.columns.get(what, len(cells))
    return cells[at].strip() if at < len(cells) else ""


def _object(cells: Sequence[str], table: Table, place: str) -> LabelledObject | None:
    sides = ("left", "top", "right", "bottom") if table.corners else ("left", "top", "box width", "box height")
    texts = [_cell(cells, table, side) for side in sides]
    name = _cell(cells, table, "class")
    if not any(texts):
        return None
    if not name:
        raise ValueError("the box has no class; every box needs one")
    x, y, right, bottom = (_number(side, text) for side, text in zip(sides, texts))
    if table.corners:
        if right < x or bottom < y:
            raise ValueError(f"the corners {x:g}, {y:g} and {right:g}, {bottom:g} of {name!r} are swapped; swap them")
        right, bottom = right - x, bottom - y
    crowd = _cell(cells, table, "crowd").lower() in ("1", "true", "yes")
    return LabelledObject(name, (x, y, right, bottom), place, crowd)


def _number(side: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{side} is {text[:40]!r}, which is no finite number; correct it")
    return value


def layout(boxes: Path, images: Path | None = None, list: Path | None = None) -> Layout:
    """The files of a table; see ``csv``."""
    if not boxes.is_file():
        beside = [p.name for p in boxes.parent.glob("*.csv")] if boxes.parent.is_dir() else []
        raise DensekitError(
            f"{boxes}: there is no such table; {nearest(boxes.name, beside) if beside else 'correct it'}"
        )
    table = open_table(boxes)
    root = images or _images_beside(boxes, table)
    if not root.is_dir():
        raise DensekitError(f"{root}: there is no such image folder; correct the path of the images")
    names, largest = _surveyed(boxes, table)
    notes = [] if list is not None else left_aside(boxes, "are not in the table", *_named(root, names))
    chosen = None if list is None else frozenset(names[i] for i in listed(list, names))
    relative = table.corners and 0 < largest <= 1
    if relative:
        notes.append(f"{boxes}: all coordinates lie from 0 to 1 and are read as parts of the image's width and height")
    return Layout(boxes, root, [boxes], CsvReader(chosen), relative=relative, notes=tuple(notes))


def _surveyed(boxes: Path, table: Table) -> tuple[Sequence[str], float]:
    """The images that a table names, each once, and the largest of its coordinates."""
    names: dict[str, None] = {}
    largest = 0.0
    for _, cells in _rows(boxes, table):
        names[_cell(cells, table, "file")] = None
        for side in ("left", "top", "right", "bottom"):
            text = _cell(cells, table, side)
            if text and _is_number_or_empty(text):
                largest = max(largest, float(text))
    return tuple(names), largest


def _named(root: Path, names: Iterable[str]) -> tuple[Sequence[str], set[str]]:
    """The images of a folder, and those of them that the names of a table mean."""
    there = dict.fromkeys(images_below(root))
    found = FileNames(there)
    return tuple(there), {own for name in names for own in ([name] if name in there else found.meant_by(name))}


def _images_beside(boxes: Path, table: Table) -> Path:
    """The folder, of those where images mostly are, that has the first images of the table."""
    above = boxes.parent
    near = [above, inner_folder(above, "images", "imgs", "img"), inner_folder(above.parent, "images")]
    near += [inner_folder(above, boxes.stem.removesuffix("_labels"), boxes.stem)]
    places = [place for place in near if place is not None]
    names = [_cell(cells, table, "file") for _, (_, cells) in zip(range(20), _rows(boxes, table))]
    for place in places:
        if any((place / name).is_file() for name in names if name):
            return place
    for place in places:
        found = FileNames(images_below(place))
        if any(len(found.meant_by(name)) == 1 for name in names if name):
            return place
    first = names[0] if names else ""
    raise DensekitError(f"{boxes}: its images, such as {first!r}, are not beside it; give images: DIR")


def recognise(folder: Path) -> Found | None:
    """A folder with a table of boxes, or with one for each split."""
    tables = [folder / name for name in files_below(folder, ".csv", deep=False) if _is_table(folder / name)]
    inner = {}
    for role, place in role_folders(folder):
        of_role = [place / name for name in files_below(place, ".csv", deep=False) if _is_table(place / name)]
        if len(of_role) == 1:
            inner[role] = {"boxes": of_role[0], "images": place}
    if inner:
        return Found("csv", inner)
    named = {of_name: path for path in tables if (of_name := role_of(path.stem))}
    if len(named) > 1:
        return Found("csv", {role: {"boxes": path} for role, path in named.items()})
    return Found("csv", {"": {"boxes": tables[0]}}) if len(tables) == 1 else None


def _is_table(path: Path) -> bool:
    try:
        open_table(path)
    except DensekitError:
        return False
    return True


@DATASETS.register
def csv(
    *,
    boxes: Path,
    images: Path | None = None,
    list: Path | None = None,
    classes: tuple[str, ...] | None = None,
    on_bad_box: Literal["error", "drop"] = "error",
    transforms: Pipeline | None = None,
    seed: int = 0,
    training: bool = False,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
) -> CocoDataset:
    """Images and boxes of a table.

    Args:
        boxes: the CSV file.
        images: the image folder; None: the one beside the table that has its images.
        list: text file that names the images to use, one a line.
        classes: names of the classes to use, in label order, all there are; None: those that occur, by name.
        on_bad_box: a box without area, or outside its image, is an error, or dropped.
        transforms: see ``CocoDataset``.
        seed: see ``CocoDataset``.
        training: detection looks at the same data either way.
        channels: see ``CocoDataset``.
        max_pixels: see ``CocoDataset``.
    """
    return labelled_images(
        layout(boxes, images, list),
        on_bad_box=on_bad_box,
        classes=classes,
        transforms=transforms,
        seed=seed,
        channels=channels,
        max_pixels=max_pixels,
    )
