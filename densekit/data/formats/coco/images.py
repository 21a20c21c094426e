"""The image files of a COCO json."""

from __future__ import annotations

from pathlib import Path

from densekit.data.formats.coco.file import CocoFile
from densekit.data.images.names import other_spellings, spelling_note
from densekit.data.images.present import absent
from densekit.data.images.read import inside, leaves_folder
from densekit.types import DensekitError


class CocoImages:
    """Where the images of a file are, also where the file spells a name unlike the disk.

    Args:
        folder: the images; ``file_name`` in the json is relative to it. A name that leads out of it, such as the path
            that an image had on another machine or its address, means the one file of the folder that ends like it.
        file: the annotations.

    Attributes:
        notes: one line for each kind of thing that is read although it is written otherwise, or that is left out.

    Raises:
        DensekitError: there is no such folder, or a name leaves it.
    """

    def __init__(self, folder: Path, file: CocoFile) -> None:
        if not folder.is_dir():
            raise DensekitError(f"{folder}: there is no such image folder; correct the path of the images")
        self.folder, self.file = folder, file
        names = list(file.file_names)
        self._spelled = other_spellings(folder, names, outside=True)
        self._check_inside(names)
        self.notes = [*file.notes, *file.dropped]
        if self._spelled:
            self.notes.append(spelling_note(file.path, names, self._spelled))

    def missing_files(self) -> list[Path]:
        """The image files that are not there."""
        names = list(self.file.file_names)
        for index, name in self._spelled.items():
            names[index] = name
        return [self.folder / names[i] for i in absent(self.folder, names)]

    def _check_inside(self, names: list[str]) -> None:
        for index, name in enumerate(names if _any_suspicious(names) else ()):
            if leaves_folder(name) and index not in self._spelled:
                raise DensekitError(
                    f"{self.file.path}: image {self.file.image_id(index)!r}: file_name {name!r} leaves the image "
                    f"folder {self.folder}, and not one file in it ends like it; give a path relative to it"
                )

    def path(self, index: int) -> Path:
        """The image file at ``index``.

        Raises:
            DensekitError: the name leaves the image folder.
        """
        name = self._spelled[index] if index in self._spelled else self.file.file_names[index]
        return inside(self.folder, name, self.file.path)


def _any_suspicious(names: list[str]) -> bool:
    """Whether a name may leave its folder: one look at all names at once, which nearly always ends here."""
    text = "\n".join(names)
    return (
        any(s in text for s in ("..", "\\", ":", "\0", "\n/", "\n\n"))
        or text[:1] in ("", "/", "\n")
        or text[-1] == "\n"
    )
