"""The text files of a prediction: they grow image by image and are whole whenever someone looks."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from densekit.errors import DensekitError
from densekit.files import explain_os_error, only_process, printable, remove_leftovers, whole_file, write_text

LONGEST_STEM = 150
"""Bytes of an input's name that the names of its outputs keep; file systems take 255, numbers and endings included."""

PUBLISH_SECONDS, PUBLISH_SHARE = 1.0, 0.05
"""Least time between two copies for others to see, and the share of the time that making them may take: what a killed
process loses are the images since the last one."""

SHOWN = 20
"""Skipped images that are listed on the terminal."""

FOLDERS = ("masks", "pictures", "probabilities", "labels", "voc", "labelme")
"""Folders of a prediction that hold a file an image."""


def unique_stem(name: str, taken: set[str]) -> str:
    """A name for files as any file system takes it, numbered where it is taken; it is taken from then on.

    Names that differ in case or in their Unicode form alone are one name to some file systems.
    """
    plain = printable(name).replace("\\", "_").replace("/", "_").encode()[:LONGEST_STEM].decode(errors="ignore")
    stem, number = plain, 1
    while (key := unicodedata.normalize("NFC", stem).casefold()) in taken:
        number += 1
        stem = f"{plain}_{number}"
    taken.add(key)
    return stem


class GrowingFile:
    """A text file whose entries gather in a nameless file of the same folder until they are published.

    Args:
        path: the file; what is there stays until the first ``publish``.
        start: text before the first entry.
        between: text between two entries.
        end: text behind the last one.

    Raises:
        DensekitError: the folder can't be written.
    """

    def __init__(self, path: Path, *, start: str, between: str = "", end: str = "") -> None:
        self.path, self._between, self._end = path, between, end
        self._empty = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115  lives as long as this
        except OSError as error:
            raise DensekitError(explain_os_error(error, path)) from None
        self._write(start)

    def add(self, entries: Sequence[str]) -> None:
        """Append entries.

        Raises:
            DensekitError: the disk is full; what was published stays.
        """
        if entries:
            self._write(("" if self._empty else self._between) + self._between.join(entries))
            self._empty = False

    def publish(self) -> None:
        """Put a whole copy of what is there so far in the file's place.

        Raises:
            DensekitError: the disk is full; what was published before stays.
        """
        with whole_file(self.path) as copy:
            self._file.seek(0)
            shutil.copyfileobj(self._file, copy, 2**20)
            copy.write(self._end.encode())

    def _write(self, text: str) -> None:
        try:
            self._file.write(text.encode(errors="backslashreplace"))
        except OSError as error:
            raise DensekitError(explain_os_error(error, self.path)) from None


class ResultFiles:
    """``images.json``; ``predictions.json`` and ``predictions.csv`` where asked for; ``skipped.txt`` where needed.

    A context: it publishes what was added when it ends, by an error too.

    Args:
        out: the folder.
        columns: of the CSV file; None: there is none.
        rows: whether there is ``predictions.json``.

    Raises:
        DensekitError: the folder can't be written.
    """

    def __init__(self, out: Path, columns: Sequence[str] | None, *, rows: bool = True) -> None:
        if out.exists() and not out.is_dir():
            raise DensekitError(f"--out {out} is a file; give a folder")
        self._claim = only_process(out)
        for name in ("predictions", "images.json", "skipped.txt"):
            remove_leftovers(out, name)
        for folder in FOLDERS:
            remove_leftovers(out / folder)
        self.out, self.count, self.skipped = out, 0, list[str]()
        self._rows = self._table = None
        if rows:
            self._rows = GrowingFile(out / "predictions.json", start="[\n", between=",\n", end="\n]\n")
        if columns is not None:
            self._table = GrowingFile(out / "predictions.csv", start=_csv([columns]))
        # Published last: an image that stands there has its predictions in the others.
        self._images = GrowingFile(out / "images.json", start="[\n", between=",\n", end="\n]\n")
        self._stems = set[str]()
        self._due = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and not self.count:
            return  # nothing was found: what an earlier prediction left stays
        self._publish()
        listing = self.out / "skipped.txt"
        if self.skipped:
            write_text(listing, "".join(f"{line}\n" for line in self.skipped))
        else:
            listing.unlink(missing_ok=True)

    def stem(self, path: Path) -> str:
        """Name of an image's own files: that of its file as any file system takes it, numbered where it is taken."""
        return unique_stem(path.stem, self._stems)

    def add(
        self, image: dict[str, Any], rows: Sequence[dict[str, Any]] = (), table: Sequence[Sequence[object]] = ()
    ) -> None:
        """Take what was found in one image.

        Args:
            image: its entry in ``images.json``.
            rows: its entries in ``predictions.json``.
            table: its lines in ``predictions.csv``.

        Raises:
            DensekitError: the disk is full; what was published stays.
        """
        if self._rows is not None:
            self._rows.add([json.dumps(row) for row in rows])
        if self._table is not None:
            self._table.add([_csv(table)])
        self._images.add([json.dumps(image)])
        self.count += 1
        if time.monotonic() >= self._due:
            self._publish()

    def skip(self, line: str) -> None:
        """Note an image without predictions, and why."""
        self.skipped.append(printable(line))

    def skipped_summary(self, total: int) -> str | None:
        """Lines on the images that were skipped, of so many; None where there are none."""
        if not self.skipped:
            return None
        where = self.out / "skipped.txt"
        lines = [f"{len(self.skipped)} of {total} images were skipped, {where} lists them:"]
        lines += [f"  skipped: {line}" for line in self.skipped[:SHOWN]]
        if len(self.skipped) > SHOWN:
            lines.append(f"  and {len(self.skipped) - SHOWN} more")
        return "\n".join(lines)

    def _publish(self) -> None:
        began = time.monotonic()
        for file in (self._rows, self._table, self._images):
            if file is not None:
                file.publish()
        now = time.monotonic()
        self._due = now + max(PUBLISH_SECONDS, (now - began) / PUBLISH_SHARE)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
