"""Run an iterator ahead in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

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
