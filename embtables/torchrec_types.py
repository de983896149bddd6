"""TorchRec's types, imported in one place, after checking that the installed packages fit.

An FBGEMM wheel works with one minor version of torch only, and no wheel says so in its metadata: a
wrong pair fails deep inside an import. The message here says what to install instead.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version

FITTING = {"torch": "2.13", "torchrec": "1.8", "fbgemm-gpu": "1.8"}
"""Minor versions that are tied to each other."""


def check_versions(installed: dict[str, str | None]) -> None:
    """Raise ImportError unless torch, torchrec and FBGEMM belong together.

    Args:
        installed: package -> version, None where it is missing. "fbgemm-gpu" stands for either wheel.
    """
    wrong = [
        f"{name} {found or 'is missing'} (needs {FITTING[name]}.x)"
        for name, found in installed.items()
        if found is None or not found.startswith(FITTING[name] + ".")
    ]
    if wrong:
        raise ImportError(
            "torch, torchrec and FBGEMM do not fit each other: " + ", ".join(wrong) + ".\n"
            "Install the pinned set, without dependency resolution:\n"
            "  pip install --no-deps -r requirements/cpu.txt    (CPU)\n"
            "  pip install --no-deps -r requirements/cuda.txt   (CUDA)"
        )


def _installed(*names: str) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


check_versions(
    {
        "torch": _installed("torch"),
        "torchrec": _installed("torchrec"),
        "fbgemm-gpu": _installed("fbgemm-gpu-cpu", "fbgemm-gpu"),
    }
)
# TorchRec asks torch.fx a question that logs a deprecation at every first batch.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
# Its planner warns about itself, on every rank.
logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)

from torchrec.sparse.jagged_tensor import (  # noqa: E402 - the check comes first
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
)

__all__ = ["JaggedTensor", "KeyedJaggedTensor", "KeyedTensor", "check_versions"]
