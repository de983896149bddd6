"""What a run asks of the machine: device and number format."""

from __future__ import annotations

import logging
import os

import torch

log = logging.getLogger("embtables")


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
    """Return whether the network computes in bfloat16: asked for, or auto and fast on the device.

    Warns where it was asked for and is slow.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    if precision == "bf16" and not fast:
        log.warning(
            "train.precision: this %s has no bfloat16 instructions, without which bf16 is many times "
            "slower than fp32; train.precision=auto takes it only where it is fast",
            "GPU" if device.type == "cuda" else "CPU",
        )
    return fast if precision == "auto" else precision == "bf16"
