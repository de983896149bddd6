"""Large pages: a read from a table of gigabytes, in pages of 4 KiB, first waits for its page's address.

On Linux, memory lies in transparent large pages (2 MiB on most machines) where a program asks for them.
Elsewhere nothing is asked.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
_madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


def in_large_pages(tensor: Tensor) -> Tensor:
    """Return the tensor itself, having asked for large pages for the memory that is first touched later.

    It is advice: small tensors, other devices, and kernels without large pages stay as they are.
    """
    if _madvise is not None and _ADVICE is not None and tensor.device.type == "cpu":
        page = mmap.PAGESIZE
        start = -(-tensor.data_ptr() // page) * page
        end = (tensor.data_ptr() + tensor.nbytes) // page * page
        if end > start:
            _madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _ADVICE)
    return tensor


def large_zeros(like: Tensor, *shape: int) -> Tensor:
    """Return zeros of the number format and device of a tensor, in large pages."""
    return in_large_pages(like.new_empty(shape)).zero_()
