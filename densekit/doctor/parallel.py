"""A function over many files in several processes, with a progress bar; a process that dies takes one file with it."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from densekit import machine
from densekit.console import Bar

Item = TypeVar("Item")
Result = TypeVar("Result")

_SMALLEST, _LARGEST = 16, 512  # items that a process is handed at once
_ALONE = 48  # so few items are done before a process has started


def over_files(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    what: str,
    died: Callable[[Item], Result],
    *,
    processes: int | None = None,
    shown: bool = True,
) -> list[Result]:
    """Results of ``work`` in the order of the items.

    Args:
        work: a function of a module; it may crash on hostile files.
        items: what to do.
        what: is written before the bar.
        died: the result of an item whose process was killed: a decoder that crashed, or memory that ran out.
        processes: how many; None: one a core, at most 16.
        shown: whether to show the bar.
    """
    count = min(processes or min(16, machine.cores()), -(-len(items) // _SMALLEST))
    if count <= 1 or len(items) < _ALONE:
        with Bar(what, len(items), shown=shown, lines=0) as bar:
            return [_and_advance(bar, work(item)) for item in items]
    length = min(max(_SMALLEST, len(items) // (32 * count)), _LARGEST)
    pieces = [items[i : i + length] for i in range(0, len(items), length)]
    done: dict[int, list[Result]] = {}
    with _pool(count) as pool:
        # All processes start with the first of these, before the bar has a thread that a fork would cut off.
        futures: dict[Future[list[Result]], int] = {}
        with contextlib.suppress(BrokenProcessPool):
            futures.update((pool.submit(_each, work, piece), i) for i, piece in enumerate(pieces))
        with Bar(what, len(items), shown=shown, lines=4) as bar:
            for future in as_completed(futures):
                with contextlib.suppress(BrokenProcessPool):
                    done[futures[future]] = future.result()
                    for _ in done[futures[future]]:
                        bar.advance()
    for i, piece in enumerate(pieces):
        if i not in done:
            done[i] = [_alone(work, item, died) for item in piece]
    return [result for i in range(len(pieces)) for result in done[i]]


def _and_advance(bar: Bar, result: Result) -> Result:
    bar.advance()
    return result


def _each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [work(item) for item in items]


def _alone(work: Callable[[Item], Result], item: Item, died: Callable[[Item], Result]) -> Result:
    with _pool(1) as pool:
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            return died(item)


def _pool(count: int) -> ProcessPoolExecutor:
    # Forked where that can be: a fresh process imports torch first, which takes longer than most data sets.
    context = machine.forking() or multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context)
