"""What a run asks of the machine: device, number format, memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

import torch


def pick_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` stands for; each rank of a host has a GPU.

    Raises:
        ValueError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device: cuda is not available here; use train.device=cpu")
    use_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if use_cuda
        else torch.device("cpu")
    )


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether the network computes in bfloat16: asked for, or auto and fast on the device."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def keep_freed_memory() -> None:
    """Let glibc hand freed blocks out again instead of returning them to the system.

    A batch needs blocks of tens of megabytes; by default each of them is mapped, zeroed page by page
    and unmapped at every step, which costs about a tenth of it. Elsewhere this does nothing.
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
