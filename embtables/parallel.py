"""Numba on the CPU: one pool of threads with torch, and kernels called with tensors."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.core import config
from torch import Tensor

log = logging.getLogger("embtables")


def _share_threads() -> None:
    """Let Numba's threads be those of torch, or else threads that sleep.

    Two OpenMP runtimes spin against each other, which costs more than the kernels take; the sleeping
    work queue takes 0.1 ms to wake (bench/README.md). With torch's runtime in the global scope of the
    loader, Numba's OpenMP layer binds to it. When Numba starts its threads it sets the number of
    threads and nesting for the whole runtime: both are put back.
    """
    threads = torch.get_num_threads()
    try:
        runtime = ctypes.CDLL(
            str(Path(torch.__file__).parent / "lib" / "libgomp.so.1"), mode=ctypes.RTLD_GLOBAL
        )
        import numba.np.ufunc.omppool  # pyright: ignore[reportMissingImports]
    except (OSError, ImportError):
        config.THREADING_LAYER = "workqueue"  # pyright: ignore[reportAttributeAccessIssue]
        return
    config.THREADING_LAYER = "omp"  # pyright: ignore[reportAttributeAccessIssue]
    numba.set_num_threads(1)  # starts them
    runtime.omp_set_max_active_levels(1)
    torch.set_num_threads(threads)


_share_threads()
ITEMS = 8192
"""Items that a thread should have: to wake it takes as long as hundreds, on a busy machine thousands."""

MOST: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]


def thread_count() -> int:
    """Return the number of threads: torch's, as far as Numba has them."""
    return min(torch.get_num_threads(), MOST)


def call(kernel: Callable[..., Any], *arguments: Any, items: int | None = None) -> Any:
    """Run a kernel on CPU tensors with torch's number of threads; an array comes back as a tensor.

    Args:
        kernel: takes the arguments and, last, the number of threads.
        arguments: tensors go in as arrays without a copy, those of float16 as int16 of the same bits.
        items: ids or rows that it works on; a few of them wake no other thread.
    """
    _announce(kernel)
    threads = thread_count()
    if items is not None:
        threads = min(threads, 1 + items // ITEMS)
    numba.set_num_threads(threads)
    found = kernel(*(_array(one) if isinstance(one, Tensor) else one for one in arguments), threads)
    return torch.from_numpy(found) if isinstance(found, np.ndarray) else found


@cache
def _announce(kernel: Any) -> None:
    """Say once in a process that kernels are being compiled, if they are not in Numba's cache."""
    name = kernel.py_func.__qualname__
    if not any(Path(kernel.stats.cache_path).glob(f"*.{name}-*.nbi")):
        _say_compiling()


@cache
def _say_compiling() -> None:
    log.info("compiling CPU kernels: some seconds, once on this machine")


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.requires_grad or not tensor.is_contiguous():
        tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.float16 else tensor).numpy()
