"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from densekit.errors import DensekitError


@contextlib.contextmanager
def whole_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without an error.

    The data reach the disk (fsync) before the rename, so after a crash or a full disk ``path`` holds either the old
    content or the new one, never a part.

    Raises:
        DensekitError: the disk is full or the folder can't be written; the old file is untouched.
    """
    path = Path(path)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}  # the same bytes on every system
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, mode, **text) as file:
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


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a process killed in ``whole_file`` left behind."""
    for path in folder.glob(".*.tmp"):
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
        raise DensekitError(explain_os_error(error, path)) from None
    try:
        # A record lock, which loader workers do not inherit: they may outlive a killed run by seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise DensekitError(f"{folder}: another process is training there; stop it or give another --out") from None
    except OSError:
        file.close()
        return None
    return file


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
