"""Work ahead of the one who asks: an iterator in a thread of its own, or a function in several."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORKERS = min(4, os.cpu_count() or 1)
"""Threads that work on one thing."""

_END = object()


def prefetch(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the items in order, computed up to `depth` ahead by a thread.

    An exception of the iterator is raised where its item would have come. Closing this generator
    ends the thread before it returns.
    """
    if depth < 1:
        yield from items
        return
    ready: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in items:
                ready.put((item, None))
                if stop.is_set():
                    return
            ready.put((_END, None))
        except BaseException as error:
            ready.put((_END, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()  # pyright: ignore[reportGeneralTypeIssues]
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        # An emptied queue lets a waiting `put` through, and the thread then sees `stop`.
        while thread.is_alive():
            try:
                ready.get(timeout=0.01)
            except queue.Empty:
                continue
        thread.join()


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `WORKERS` threads; what they have not begun when the block ends is left undone."""
    pool = ThreadPoolExecutor(WORKERS, "worker")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ordered(function: Callable[[T], R], items: Iterator[T]) -> Generator[R, None, None]:
    """Yield function(item) of each item in order, computed by `WORKERS` threads a few items ahead.

    An exception of the function or the iterator is raised where its result would have come.
    """
    pending: deque[Future[R]] = deque()
    broken: Exception | None = None
    with workers() as pool:
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as error:
                broken = error
                break
            pending.append(pool.submit(function, item))
            if len(pending) > WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    if broken is not None:
        raise broken
