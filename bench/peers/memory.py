"""Peak memory of a process and all processes below it, shared memory counted once.

A library may do its work in processes of its own, so that `ru_maxrss` of one says little. This
module imports nothing but the standard library, so that it runs in every environment. Linux only.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

PROC = Path("/proc")


class PeakMemory:
    """Watches the processes from this one down while the block runs.

    Args:
        pid: root of the processes; default: this one.
        interval: seconds between two looks.

    Attributes:
        bytes: the most that was seen.
    """

    def __init__(self, pid: int | None = None, interval: float = 0.1) -> None:
        self.pid = os.getpid() if pid is None else pid
        self.interval = interval
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(self.interval):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, sum(proportional(pid) for pid in below(self.pid)))


def below(root: int) -> list[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            parent = _parent(entry)
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _parent(entry: Path) -> int | None:
    try:
        # The name in parentheses may hold spaces; the fields behind it do not.
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None  # it has just ended


def proportional(pid: int) -> int:
    """Return the resident bytes of a process, pages of several processes shared out among them."""
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0
