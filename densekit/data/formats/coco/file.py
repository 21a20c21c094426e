"""A COCO json file as compact columns, sorted by image, checked, cached and shared by the loader's workers.

Opening a file the first time parses and checks it (``coco_parse``, ``coco_check``). Large files leave their columns in
the user's cache folder (``column_store``); opening one again maps them, which takes milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import mmap
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from densekit.data.column_store import Strings, cache_folder, fingerprint, map_columns, write_columns
from densekit.data.formats.coco.check import REMEDY, bad_box_message, box_defects, check_annotations, check_images
from densekit.data.formats.coco.columns import CocoColumns, Id, Ids
from densekit.data.formats.coco.parse import parse_coco, read_segmentation
from densekit.data.formats.coco.rle import Runs, SegmentationError, segmentation_runs
from densekit.types import Classes, DensekitError, nearest

CACHE_FROM = 1 << 22
"""Size in bytes from which on a file's columns are cached; smaller ones are parsed faster than a cache is kept tidy."""

_VERSION = "densekit-coco-3"


@dataclasses.dataclass(frozen=True, eq=False)
class CocoFile:
    """A COCO file's columns; I images in file order, A annotations ordered by image, then as in the file.

    Attributes:
        path: the json file.
        classes: names and ids of the categories, ordered by id (so that the order in the file does not matter).
        image_ids: [I] the file's own ids: int64, or strings.
        file_names: [I] relative to the image folder.
        sizes: [I, 2] int64 (height, width).
        first: [I + 1] int64: image i has the annotations ``first[i]:first[i + 1]``.
        annotation_ids: [A] the file's own ids: int64, or strings.
        labels: [A] int64 position in ``classes``.
        boxes: [A, 4] float64 (x, y, width, height), as the file has them.
        areas: [A] float64; width x height of the box where the file gives none.
        crowd: [A] bool.
        segmentations: [A] int64, where in the file (or in ``polygons``) each segmentation stands; -1 for none. See
            ``segmentation``.
        notes: one line for each kind of value that is read although COCO would write it otherwise.
        dropped: one line for each rule that boxes were dropped by (``on_bad_box="drop"``).
        store: the cache file that the columns are mapped from, where there is one.
        parts: of several jsons that are one data set: each one's path, and where its text starts among the positions in
            ``segmentations``. ``path`` is then their common folder.
        polygons: as JSON, of labels that are in no json; None: the segmentations are in ``path``.
    """

    path: Path
    classes: Classes
    image_ids: npt.NDArray[np.int64] | Strings
    file_names: Strings
    sizes: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    annotation_ids: npt.NDArray[np.int64] | Strings
    labels: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    segmentations: npt.NDArray[np.int64]
    notes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    store: Path | None = None
    parts: tuple[tuple[Path, int], ...] = ()
    polygons: Strings | None = None

    def __len__(self) -> int:
        return len(self.file_names)

    def image_id(self, image: int) -> Id:
        """The file's own id of an image, as a Python number or string."""
        value = self.image_ids[image]
        return value if isinstance(value, str) else int(value)

    def annotation_id(self, annotation: int) -> Id:
        """The file's own id of an annotation, as a Python number or string."""
        value = self.annotation_ids[annotation]
        return value if isinstance(value, str) else int(value)

    def annotations(self, image: int) -> slice:
        """Where the annotations of an image stand in the columns."""
        return slice(int(self.first[image]), int(self.first[image + 1]))

    @functools.cached_property
    def owners(self) -> npt.NDArray[np.int64]:
        """[A] the image of each annotation, as a position."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    @property
    def max_objects(self) -> int:
        """The most annotations that any image has."""
        return int(np.diff(self.first).max(initial=0))

    def segmentation(self, annotation: int) -> Any:
        """Read one annotation's segmentation from the file.

        Returns:
            A list of polygons (flat lists x1, y1, x2, ...), a dictionary ``{"size": [height, width], "counts": ...}``
            with counts as a list or a compressed string, or None.

        Raises:
            DensekitError: the file was changed since it was opened.
        """
        at = int(self.segmentations[annotation])
        if at < 0:
            return None
        if self.polygons is not None:
            return json.loads(self.polygons[at])
        path, start = self._part(at)
        try:
            return read_segmentation(_mapped(path), at - start)
        except (ValueError, OSError) as error:
            raise DensekitError(
                f"{path}: the segmentation of annotation {self.annotation_id(annotation)!r} cannot be read "
                f"({error}); if the file was changed since it was opened, start again"
            ) from None

    def runs(self, image: int, annotation: int) -> Runs | None:
        """The run lengths of the mask of an image's annotation, column by column; None where it has none.

        Raises:
            DensekitError: its segmentation breaks the format.
        """
        segmentation = self.segmentation(annotation)
        if segmentation in (None, [], [[]]):
            return None
        try:
            return segmentation_runs(segmentation, int(self.sizes[image, 0]), int(self.sizes[image, 1]))
        except SegmentationError as error:
            where = f"{self.source(annotation)}: annotation {self.annotation_id(annotation)!r}"
            raise DensekitError(f"{where}: {error}; correct or remove it") from None

    def source(self, annotation: int) -> Path:
        """The json that an annotation's segmentation is in; of one without, the file, or the folder of several."""
        at = int(self.segmentations[annotation])
        return self.path if at < 0 else self._part(at)[0]

    def _part(self, at: int) -> tuple[Path, int]:
        """The json that a position is in, and where its text starts."""
        return next((part for part in reversed(self.parts) if part[1] <= at), (self.path, 0))

    def keep(self, annotations: npt.NDArray[np.bool_], classes: Classes | None = None) -> Self:
        """The same images with fewer annotations.

        Args:
            annotations: [A] which to keep.
            classes: the classes to keep, in the new label order; the annotations kept must all be of these.
        """
        counts = np.bincount(self.owners[annotations], minlength=len(self))
        labels = self.labels[annotations]
        if classes is not None:
            labels = np.array([_index(classes.ids, i) for i in self.classes.ids], np.int64)[labels]
        ids = self.annotation_ids
        kept = np.flatnonzero(annotations)
        return dataclasses.replace(
            self,
            classes=classes or self.classes,
            first=np.concatenate(([0], np.cumsum(counts))),
            annotation_ids=ids[kept] if isinstance(ids, np.ndarray) else Strings.pack([ids[i] for i in kept]),
            labels=labels,
            boxes=self.boxes[kept],
            areas=self.areas[kept],
            crowd=self.crowd[kept],
            segmentations=self.segmentations[kept],
            store=None,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the same cache file and copies nothing."""
        if self.store is not None:
            return read_store, (self.path, self.store, self.dropped)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return _rebuilt, (fields,)


def open_coco(
    path: Path,
    *,
    on_bad_box: Literal["error", "drop"] = "error",
    classes: Sequence[str] | None = None,
    labelled: bool = True,
    cache: bool = True,
) -> CocoFile:
    """Open a COCO json file.

    Args:
        path: the json file.
        on_bad_box: a box that is not finite, has no area, or lies wholly outside its image is an error, or is dropped
            (``CocoFile.dropped`` says so).
        classes: names of the categories to keep, in label order; None: all of them, by id.
        labelled: False takes a file without ``annotations`` and ``categories`` too, for its images.
        cache: keep the columns of a large file in the user's cache folder (``$DENSEKIT_CACHE`` moves it; ``off``).

    Raises:
        DensekitError: the file breaks a rule; one line names the file, the annotation, the value, the rule, the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise DensekitError(_missing(path))
    file = _opened(path, cache, labelled)
    file = with_good_boxes(file, on_bad_box)
    return file if classes is None else only_classes(file, classes)


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path}: is a folder; give the json file in it"
    folder = path.parent
    names = [p.name for p in folder.glob("*.json")] if folder.is_dir() else []
    if names:
        return f"{path}: there is no such file; {nearest(path.name, names)}"
    return f"{path}: there is no such file, nor any json in its folder; correct the path"


def _opened(path: Path, cache: bool, labelled: bool) -> CocoFile:
    folder = cache_folder() if cache and labelled and path.stat().st_size >= CACHE_FROM else None
    if folder is None:
        return _from_columns(parse_coco(path, labelled=labelled), labelled)
    same_path = f"{path.stem}-{hashlib.blake2b(str(path.resolve()).encode()).hexdigest()[:12]}"
    store = folder / "coco" / f"{same_path}-{fingerprint(path, _VERSION)}.safetensors"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged: parse and write it anew
        return read_store(path, store)
    file = _from_columns(parse_coco(path))
    with contextlib.suppress(OSError):  # no room or no right to write: work without a cache
        write_store(file, store)
        for old in store.parent.glob(f"{same_path}-*.safetensors"):
            if old != store:
                old.unlink()
        return read_store(path, store)
    return file


def _from_columns(columns: CocoColumns, labelled: bool = True) -> CocoFile:
    check_images(columns)
    images, categories = check_annotations(columns, labelled)
    annotations, order = columns.annotations, np.argsort(images, kind="stable")
    ids, names = columns.categories.ids, columns.categories.names
    by_id = np.argsort(np.array(ids, np.int64), kind="stable")
    heading = _heading(columns)
    by_id = by_id[by_id != heading]
    rank = np.full(len(ids), -1)
    rank[by_id] = np.arange(len(by_id))
    classes = Classes.named_in(columns.path, (names[i] for i in by_id), (ids[i] for i in by_id))
    boxes, areas = annotations.boxes[order], annotations.areas[order]
    with np.errstate(all="ignore"):
        areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)
    return CocoFile(
        path=columns.path,
        classes=classes,
        image_ids=_packed_images(columns.path, columns.images.ids),
        file_names=Strings.pack(columns.images.file_names),
        sizes=np.stack((columns.images.heights, columns.images.widths), 1),
        first=np.concatenate(([0], np.cumsum(np.bincount(images, minlength=len(columns.images.ids))))),
        annotation_ids=_packed(annotations.ids, order),
        labels=rank[categories[order]],
        boxes=boxes,
        areas=areas,
        crowd=annotations.crowd[order] == 1,
        segmentations=annotations.segmentations[order],
        notes=_notes(columns, heading),
    )


def _heading(columns: CocoColumns) -> int:
    """Position of the category 0 that Roboflow writes: the supercategory of all others, without objects; -1: none."""
    categories = columns.categories
    at = categories.ids.index(0) if 0 in categories.ids else -1
    others = [parent for i, parent in enumerate(categories.parents) if i != at]
    unused = 0 not in columns.annotations.category_ids
    return at if at >= 0 and unused and others and set(map(str, others)) == {categories.names[at]} else -1


def _notes(columns: CocoColumns, heading: int) -> tuple[str, ...]:
    """How often each kind of odd value was read, and what was left out."""
    told = []
    if heading >= 0:
        name = repr(columns.categories.names[heading])
        told = [f"{columns.path}: category 0, {name}, is the heading of the others and has no objects: it is left out"]
    odd = Counter([*columns.images.odd, *columns.categories.odd, *columns.annotations.odd])
    return (*told, *(f"{columns.path}: {count} {words}" for words, count in odd.items()))


def _packed_images(path: Path, ids: Ids) -> npt.NDArray[np.int64] | Strings:
    numbers = [] if isinstance(ids, np.ndarray) else [i for i in ids if not isinstance(i, str)]
    if numbers:
        raise DensekitError(f"{path}: ids of images are numbers ({numbers[0]}) and texts mixed; use one kind; {REMEDY}")
    return _packed(ids, np.arange(len(ids)))


def _packed(ids: Ids, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | Strings:
    """Ids in an order; numbers and texts mixed become texts."""
    return ids[order] if isinstance(ids, np.ndarray) else Strings.pack([str(ids[i]) for i in order])


_TEXT_COLUMNS = ("image_ids", "file_names", "annotation_ids")
_COLUMNS = (*_TEXT_COLUMNS, "sizes", "first", "labels", "boxes", "areas", "crowd", "segmentations")


def write_store(file: CocoFile, store: Path) -> None:
    """Write the columns of a file to a cache file; raises OSError."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in (*_COLUMNS, *(["polygons"] if file.polygons is not None else [])):
        column = getattr(file, name)
        if isinstance(column, Strings):
            columns |= {f"{name}.letters": column.letters, f"{name}.ends": column.ends}
        else:
            columns[name] = column
    about = {"version": _VERSION, "names": file.classes.names, "ids": file.classes.ids, "notes": file.notes}
    write_columns(store, columns, about)


def read_store(path: Path, store: Path, dropped: tuple[str, ...] = ()) -> CocoFile:
    """Map the columns of a cache file.

    Args:
        path: of the file that they were read from.
        store: the cache file.
        dropped: see ``CocoFile``.

    Raises:
        OSError: there is no cache file.
        ValueError: it is damaged or of another version; likewise KeyError and TypeError.
    """
    columns, about = map_columns(store)
    if about["version"] != _VERSION:
        raise ValueError("another version's cache")
    fields: dict[str, Any] = {
        name: Strings(columns[f"{name}.letters"], columns[f"{name}.ends"])
        if f"{name}.ends" in columns
        else columns[name]
        for name in (*_COLUMNS, *(["polygons"] if "polygons.ends" in columns else []))
    }
    classes = Classes(names=tuple(about["names"]), ids=tuple(about["ids"]))
    notes = tuple(about["notes"])
    return CocoFile(path=path, classes=classes, notes=notes, dropped=dropped, store=store, **fields)


def _rebuilt(fields: dict[str, Any]) -> CocoFile:
    return CocoFile(**fields)


def with_good_boxes(file: CocoFile, on_bad_box: Literal["error", "drop"]) -> CocoFile:
    """The same file, if its boxes keep the rules; else an error, or the file without those that do not."""
    defects = box_defects(file.boxes, file.sizes[file.owners])
    lines = []
    for code, mask in defects.items():
        if mask.any():
            i = int(np.flatnonzero(mask)[0])
            name = file.file_names[int(file.owners[i])]
            lines.append(bad_box_message(file.path, code, file.annotation_id(i), file.boxes[i], name, int(mask.sum())))
    if not lines:
        return file
    if on_bad_box == "error":
        raise DensekitError(lines[0])
    good = ~np.logical_or.reduce(list(defects.values()))
    return dataclasses.replace(file.keep(good), dropped=tuple(lines))


def only_classes(file: CocoFile, names: Sequence[str]) -> CocoFile:
    """The same images with the annotations of some categories, in the label order given."""
    for name in names:
        if name not in file.classes.names:
            raise DensekitError(f"{file.path}: there is no category {name!r}; {nearest(name, file.classes.names)}")
    ids = tuple(file.classes.ids[file.classes.names.index(n)] for n in names)
    wanted = np.isin(np.array(file.classes.ids), ids)
    return file.keep(wanted[file.labels], Classes.named_in("classes", names, ids))


def _index(values: Sequence[int], value: int) -> int:
    return values.index(value) if value in values else -1


@functools.lru_cache(maxsize=16)
def _map(path: Path, size: int, changed: int) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _mapped(path: Path) -> mmap.mmap:
    status = os.stat(path)
    return _map(path, status.st_size, status.st_mtime_ns)
