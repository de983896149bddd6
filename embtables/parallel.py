"""Numba on the CPU: one pool of threads with torch, and kernels called with tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.core import config
from torch import Tensor


def _threading_layer() -> str:
    """Let Numba's threads be those of torch, or else threads that sleep.

    Two OpenMP runtimes spin against each other, which costs more than the kernels take; the sleeping
    work queue takes 0.1 ms to wake (bench/README.md). With torch's runtime in the global scope of the
    loader, Numba's OpenMP layer binds to it.
    """
    try:
        runtime = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        import numba.np.ufunc.omppool  # pyright: ignore[reportMissingImports]  # noqa: F401
    except (OSError, ImportError):
        return "workqueue"
    return "omp"


config.THREADING_LAYER = _threading_layer()  # pyright: ignore[reportAttributeAccessIssue]
_MOST: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]


def thread_count() -> int:
    """Return the number of threads: torch's, as far as Numba has them."""
    return min(torch.get_num_threads(), _MOST)


def call(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Run a kernel on CPU tensors with torch's number of threads; an array comes back as a tensor.

    Args:
        kernel: takes the arguments and, last, the number of threads.
        arguments: tensors go in as arrays without a copy, those of float16 as int16 of the same bits.
    """
    threads = thread_count()
    numba.set_num_threads(threads)
    found = kernel(*(_array(one) if isinstance(one, Tensor) else one for one in arguments), threads)
    return torch.from_numpy(found) if isinstance(found, np.ndarray) else found


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.float16 else tensor).numpy()
