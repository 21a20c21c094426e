"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from densekit.errors import DensekitError

_ODD = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})")


def printable(name: str | Path) -> str:
    r"""A file name as text that any encoding, terminal and JSON reader takes; distinct names stay distinct.

    Bytes that are not UTF-8 and control characters become ``\xe9`` and the like; a backslash in such a name, or in one
    that looks as if it were escaped already, is doubled. All other names stay as they are.
    """
    text = str(name)
    # On Windows a backslash separates folders, and such bytes do not occur.
    if not (_ODD.search(text) or (os.sep == "/" and _ESCAPED.search(text))):
        return text
    return _ODD.sub(_escaped, text.replace("\\", "\\\\"))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    # Python stores a byte b that is not UTF-8 as the code 0xDC00 + b.
    return f"\\x{code & 0xFF:02x}" if code < 0x80 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


@contextlib.contextmanager
def whole_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without an error.

    The data reach the disk (fsync) before the rename, so after a crash or a full disk ``path`` holds either the old
    content or the new one, never a part.

    Raises:
        DensekitError: the disk is full or the folder can't be written; the old file is untouched.
    """
    path = Path(path)
    # The same bytes on every system; a lone surrogate, from a name or from JSON, is escaped.
    as_text: dict[str, Any] = {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not the whole name, which may be as long as the file system allows.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
        with os.fdopen(handle, mode, **({} if "b" in mode else as_text)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise DensekitError(explain_os_error(error, path)) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def explain_os_error(error: OSError, path: Path) -> str:
    """One line on why ``path`` could not be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} could not be written: the disk is full; free some space and run again (the old file is whole)"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{path} could not be written: {error.strerror}; choose a folder that you may write to"
    return f"{path} could not be written: {error.strerror or error}; the old file, if there was one, is whole"


def mistaken_for(start: bytes) -> str | None:
    """What a file is that was fetched in vain, by its first bytes; None where it may be what its name says."""
    if start.startswith(b"version https://git-lfs"):
        return "it is the pointer of a Git LFS file, which git lfs pull fetches"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not the file that was to be downloaded"
    return None


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove temporary files that a process killed in ``whole_file`` left behind, of files whose name begins so."""
    for path in folder.glob(f".{name}*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def only_process(folder: Path) -> IO[Any] | None:
    """Claim a folder for this process; the claim ends with the process, however it ends.

    Returns:
        What to keep alive; None where the file system or the platform knows no locks.

    Raises:
        DensekitError: another process has claimed it, or it can't be written.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        return None
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    except OSError as error:
        raise DensekitError(explain_os_error(error, folder)) from None
    try:
        # A record lock, which loader workers do not inherit: they may outlive a killed run by seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise DensekitError(
            f"{folder}: another process writes there; wait for it, stop it, or give another --out"
        ) from None
    except OSError:
        file.close()
        return None
    return file


def read_names(path: Path) -> list[str]:
    """Lines of a text file that names files; names that are not UTF-8 come as Python has them (surrogateescape).

    Raises:
        ValueError: it is no such text, but UTF-16 or something else.
        OSError: it can't be read.
    """
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if "\0" in text:
        raise ValueError("not a text file in UTF-8")
    return text.splitlines()


def read_list(source: Path, wanted: str, *, option: str = "") -> list[str]:
    """The names in a text file, one a line; blank lines and those that begin with # are skipped.

    Args:
        source: the file.
        wanted: what its lines hold, for messages, such as ``an image a line``.
        option: that names the file, for messages.

    Raises:
        DensekitError: it can't be read, or names nothing.
    """
    where = f"{option} {source}".lstrip()
    try:
        lines = [line.strip() for line in read_names(source)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DensekitError(f"{where}: can't be read ({reason}); give a text file with {wanted}") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DensekitError(f"{where}: names nothing; write {wanted}")
    return names


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path, "w") as file:
        file.write(text)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every file system can, and that is no reason to fail."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
