"""Memory of this process."""

from __future__ import annotations

import ctypes
import resource
import sys


def keep_freed_memory() -> None:
    """Let glibc hand freed blocks out again instead of returning them to the system.

    A batch needs blocks of tens of megabytes; by default each of them is mapped, zeroed page by page
    and unmapped again, which costs a step about a tenth of its time, and the evaluation of AutoInt more
    than half. Elsewhere this does nothing.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
            mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
