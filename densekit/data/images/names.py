"""Image files under another spelling of their names than the annotations have.

Windows writes backslashes, a URL ``a%20b.jpg``, a Mac's archive other Unicode characters for the same letters; case and
endings get lost, and leading folders come and go as data sets are moved. Where exactly one file of the image folder can
be meant, it is found.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from densekit.data.images.read import IMAGE_SUFFIXES, leaves_folder

_LISTED_FROM = 2000  # names; fewer are looked up one by one, which is faster than listing a large folder
_MOST_FILES = 2_000_000  # that a search looks through

Parts = tuple[str, ...]


def other_spellings(folder: Path, names: Sequence[str], *, outside: bool = False) -> dict[int, str]:
    """Files that names mean, where there is none of exactly that name.

    Args:
        folder: the images.
        names: as the annotations have them, relative to the folder.
        outside: also find files in the folder for names that lead out of it, such as the path that an image had on
            another machine; else these are left alone.

    Returns:
        By position in ``names``, the name of the file, relative to the folder. What no file or several files can be
        meant by is not there, nor a file that another name has.
    """
    missing = _missing(folder, names, outside)
    if not missing:
        return {}
    files = FileNames(_all_files(folder))
    candidates = {i: several for i in missing if (several := files.meant_by(names[i]))}
    common = _common_folder(candidates.values()) if len(candidates) == len(missing) else None
    found: dict[int, str] = {}
    for i, several in candidates.items():
        chosen = several if len(several) == 1 else [f for f in several if os.path.dirname(f) == common]
        if len(chosen) == 1:
            found[i] = chosen[0]
    absent = set(missing)
    taken = Counter([*found.values(), *(name for i, name in enumerate(names) if i not in absent)])
    return {i: name for i, name in found.items() if taken[name] == 1}


def spelling_note(source: Path, names: Sequence[str], found: Mapping[int, str]) -> str:
    """One line on files that were found under another spelling."""
    first = min(found)
    return (
        f"{source}: {len(found)} of {len(names)} file names are spelled unlike the files, which are used all the same: "
        f"{names[first]!r} is {found[first]!r}; tools/doctor.py --fix writes the names of the files"
    )


def folded(name: str) -> str:
    """A name without case and blanks, in one Unicode form."""
    return "".join(unicodedata.normalize("NFC", name).casefold().split())


def _missing(folder: Path, names: Sequence[str], outside: bool) -> list[int]:
    """Positions of names without a file in the folder; of those that lead out of it only where these are asked for."""
    if len(names) >= _LISTED_FROM:
        absent = list(_unlisted(folder, names))
    else:
        absent = [i for i, name in enumerate(names) if not _is_there(folder, name)]
    return [i for i in absent if outside or not leaves_folder(names[i])]


def _is_there(folder: Path, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name)) and not leaves_folder(name)


def _unlisted(folder: Path, names: Sequence[str]) -> Iterator[int]:
    listed: dict[str, frozenset[str]] = {}
    for i, name in enumerate(names):
        place, _, own = name.rpartition("/")
        if place not in listed:
            listed[place] = _listing(folder, place)
        if own not in listed[place]:
            yield i


def _listing(folder: Path, place: str) -> frozenset[str]:
    if place and leaves_folder(place):
        return frozenset()
    try:
        return frozenset(os.listdir(folder / place))
    except (OSError, ValueError):
        return frozenset()


class FileNames:
    """Names of files, relative to a folder, by their folded last part with and without ending."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        self._by_stem: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            own = folded(name.rpartition("/")[2])
            self._by_name[own].append(name)
            stem, ending = os.path.splitext(own)
            if ending in IMAGE_SUFFIXES:
                self._by_stem[stem].append(name)

    def meant_by(self, name: str) -> list[str]:
        """Files of a folded name, in a folder that does not contradict; else of the name without ending."""
        spellings = dict.fromkeys(_parts(text) for text in (name, unquote(name)))
        for parts in spellings:
            if parts and (found := _in_agreement(parts, self._by_name[parts[-1]])):
                return found
        for parts in spellings:
            stem, ending = os.path.splitext(parts[-1]) if parts else ("", "")
            key = stem if ending in IMAGE_SUFFIXES else stem + ending
            if key and (found := _in_agreement(parts, self._by_stem[key])):
                return found
        return []


def _all_files(folder: Path) -> Iterator[str]:
    """Names relative to the folder; hidden files and folders are left out."""
    count = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        below = Path(place).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in files:
            if not name.startswith("."):
                yield prefix + name
        count += len(files)
        if count > _MOST_FILES:
            return


def _parts(name: str) -> Parts:
    return tuple(p for p in map(folded, name.replace("\\", "/").split("/")) if p not in ("", "."))


def _in_agreement(wanted: Parts, files: Iterable[str]) -> list[str]:
    """Files whose folder is the end of the wanted one, or the other way round; those that agree the longest."""
    best, found = -1, list[str]()
    for name in files:
        folders = tuple(map(folded, PurePosixPath(name).parts[:-1]))
        shared = min(len(folders), len(wanted) - 1)
        if folders[len(folders) - shared :] != wanted[len(wanted) - 1 - shared : -1]:
            continue
        if shared > best:
            best, found = shared, []
        if shared == best:
            found.append(name)
    return found


def _common_folder(candidates: Iterable[Sequence[str]]) -> str | None:
    """The one folder that has a candidate of every name."""
    common: set[str] | None = None
    for several in candidates:
        places = {os.path.dirname(name) for name in several}
        common = places if common is None else common & places
    return common.pop() if common is not None and len(common) == 1 else None
