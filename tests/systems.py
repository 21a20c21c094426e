"""What this process looks like on another system: what only Linux has is taken away, what is stricter there is so here.

For Linux alone, where the tests run: a test that needs it skips elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
"""Modules that Windows does not have."""

CALLS = (
    *("O_NONBLOCK", "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getuid", "killpg", "mkfifo"),
    *("posix_fadvise", "pread", "pwrite", "sched_getaffinity", "sched_setaffinity", "sysconf", "uname"),
)
"""Names in ``os`` that Windows does not have."""


def without_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes start anew, as on Windows and by default on macOS."""
    import multiprocessing

    real = multiprocessing.get_context

    def get_context(method=None):
        if method not in (None, "spawn"):
            raise ValueError(f"cannot find context for {method!r}")
        return real("spawn")

    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", real("spawn"))
    monkeypatch.setattr(multiprocessing, "get_context", get_context)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])


def as_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Unix calls, no /proc, no forks, no open folders; and no file is replaced while somebody holds it."""
    from densekit import machine

    without_fork(monkeypatch)
    monkeypatch.setattr(machine, "_STATUS", Path("no such file"))
    _replace_is_strict(monkeypatch)
    _sync_is_strict(monkeypatch)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for name in CALLS:
        monkeypatch.delattr(os, name, raising=False)


def _replace_is_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(real):
        def move(source, target, **options):
            for path in (source, target):
                if _is_held(os.path.realpath(path)):
                    raise PermissionError(errno.EACCES, "the file is used by a process", str(path))
            return real(source, target, **options)

        return move

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, strict(getattr(os, name)))


def _is_held(path: str) -> bool:
    """Whether this process has a file open or mapped, or one below a folder."""
    held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    held += [line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()]
    return any(one == path or one.startswith(path + os.sep) for one in held)


def _sync_is_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    real_open, real_sync = os.open, os.fsync

    def no_folders(path, flags, *args, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "a folder cannot be opened", str(path))
        return real_open(path, flags, *args, **options)

    def writable_only(handle):
        number = handle if isinstance(handle, int) else handle.fileno()
        if not stat.S_ISREG(os.fstat(number).st_mode) or fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == 0:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real_sync(number)

    monkeypatch.setattr(os, "open", no_folders)
    monkeypatch.setattr(os, "fsync", writable_only)
