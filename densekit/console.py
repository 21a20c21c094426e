"""What a person at the terminal sees: one-line errors, progress, tables."""

from __future__ import annotations

import argparse
import errno
import io
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from densekit.errors import DensekitError
from densekit.files import printable

T = TypeVar("T")
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a place that you may use"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP), "correct the path"),
    errno.EIO: "the disk or the network behind it fails; try another place",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n), or lower data.workers"),
}
"""What to do about errors of the system that are no mistake of ours."""

DEVICES = ("cpu", "cuda", "mps")
"""What ``--device`` takes; ``mps`` is the GPU of a Mac."""

RESULT_FORMATS = ("coco", "csv", "yolo", "voc", "labelme")
"""What ``predict.py --formats`` takes."""

INTERRUPTED = 130
"""Exit code of a run that was asked to stop: 128 + SIGINT."""

SKIPPED = 3
"""Exit code of a tool that did its work but for images that could not be used, which it names."""


def run(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Run a tool's ``main``: a user's mistake becomes one line on stderr and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack letters of a name
    try:
        code = main(None) or 0
    except DensekitError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if (remedy := _REMEDIES.get(error.errno or 0)) is None:
            raise
        where = f"{printable(str(error.filename))[:300]}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; {remedy}", file=sys.stderr)
        code = 2
    except (RuntimeError, MemoryError) as error:
        if (line := _misfortune(str(error) or "out of memory")) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        code = 2
    if code and "torch" in sys.modules:
        # A rank that failed must not wait at the exit for peers and loader workers that wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        end_children()
        os._exit(code)
    sys.exit(code)


def _misfortune(message: str) -> str | None:
    """One line on an error of torch's that comes from the machine or other processes; None: none of those."""
    if "out of memory" in message or "can't allocate memory" in message:
        return (
            f"out of memory ({message.splitlines()[0][:200]}); use smaller batches, smaller images or a smaller model"
        )
    if "DataLoader worker" in message and ("killed by signal" in message or "exited unexpectedly" in message):
        advice = "Where memory ran out, lower data.workers or train.batch_size; go on with --resume"
        return f"{message.splitlines()[0]} {advice}"
    lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and any(words in message for words in lost):
        return f"rank {os.environ.get('RANK')} lost another rank, whose own message says why; go on with --resume"
    return None


def end_children() -> None:
    """End the loader workers before an exit that skips Python's own clean-up."""
    for child in multiprocessing.active_children():
        child.kill()


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number from ``least`` on, or to ``most``."""
    rule = f"of at least {least}" if most is None else f"from {least} to {most}"

    def number(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"must be a whole number {rule}, not {text!r}")
        return int(text)

    return number


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def refuse_without_effect(*options: tuple[str, bool, str]) -> None:
    """Refuse options that would do nothing.

    Args:
        options: name, whether it was given in vain, and what it is for.

    Raises:
        DensekitError: the first that was.
    """
    for name, in_vain, purpose in options:
        if in_vain:
            raise DensekitError(f"{name} is for {purpose}; leave it out")


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files, and key.path=value overrides of the config; what exists on disk is a file."""
    overrides = [
        text
        for text in arguments
        if "=" in text and not Path(text).exists() and text.split("=")[0].replace(".", "").replace("_", "").isalnum()
    ]
    return [text for text in arguments if text not in overrides], overrides


def say(text: str | None, first: bool = True) -> None:
    """Print a line, where there is one, on the first rank only."""
    if first and text is not None:
        print(text, flush=True)


class Bar:
    """A progress bar with ETA; a plain line now and then where the output is no terminal.

    Args:
        what: what is going on.
        total: number of steps. start: where it begins (a resumed run).
        shown: False on all ranks but the first.
        lines: about how many lines to print where the output is no terminal.
    """

    def __init__(self, what: str, total: int, *, start: int = 0, shown: bool = True, lines: int = 20) -> None:
        self.what, self.total, self.shown = what, total, shown
        self.console = Console(stderr=True)
        self._live = shown and self.console.is_terminal
        self._every = max(1, total // lines) if lines else 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(what, total=total, completed=start, note="")
        self._done, self._note = start, ""

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, note: str | None = None) -> None:
        """One step further; ``note`` stands behind the bar until the next one."""
        self._note = self._note if note is None else note
        before, self._done = self._done, self._done + 1
        self._progress.update(self._task, advance=1, note=self._note)
        if self.shown and not self._live and self._every and before // self._every != self._done // self._every:
            left = self._progress.tasks[0].time_remaining
            eta = f"  ETA {left:.0f} s" if left else ""
            print(f"{self.what} {self._done}/{self.total}{eta}  {self._note}", file=sys.stderr, flush=True)


def track(items: Iterable[T], what: str, total: int, *, shown: bool = True) -> Iterator[T]:
    """Iterate with a progress bar."""
    with Bar(what, total, shown=shown, lines=4) as bar:
        for item in items:
            yield item
            bar.advance()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; floats with four digits."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)
