"""The image files of a COCO json."""

from __future__ import annotations

from pathlib import Path

from densekit.data.formats.coco.file import CocoFile
from densekit.data.images.names import other_spellings, spelling_note
from densekit.data.images.read import inside
from densekit.types import DensekitError


class CocoImages:
    """Where the images of a file are, also where the file spells a name unlike the disk.

    Args:
        folder: the images; ``file_name`` in the json is relative to it and may not leave it.
        file: the annotations.

    Attributes:
        notes: one line for each kind of thing that is read although it is written otherwise, or that is left out.

    Raises:
        DensekitError: there is no such folder.
    """

    def __init__(self, folder: Path, file: CocoFile) -> None:
        if not folder.is_dir():
            raise DensekitError(f"{folder}: there is no such image folder; correct the path of the images")
        self.folder, self.file = folder, file
        names = list(file.file_names)
        self._spelled = other_spellings(folder, names)
        self.notes = [*file.notes, *file.dropped]
        if self._spelled:
            self.notes.append(spelling_note(file.path, names, self._spelled))

    def path(self, index: int) -> Path:
        """The image file at ``index``.

        Raises:
            DensekitError: the name leaves the image folder.
        """
        name = self._spelled[index] if index in self._spelled else self.file.file_names[index]
        return inside(self.folder, name, self.file.path)
