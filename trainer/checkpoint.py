"""Checkpoints: tensors and plain values in one safetensors file, replaced atomically, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_MARK = "/"


def save(file: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write a checkpoint; a crash at any moment leaves the old file or the new one, whole.

    Args:
        file: where to.
        tensors: name -> tensor, any shapes and devices.
        values: whatever JSON can hold.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, temporary, metadata={"values": json.dumps(values)})
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and values of a checkpoint.

    Raises:
        ValueError: the file is not a whole checkpoint.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            values = json.loads((stored.metadata() or {})["values"])
            return {name: stored.get_tensor(name) for name in stored.keys()}, values  # noqa: SIM118
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{file}: not a readable checkpoint ({error}); start over with --fresh"
        ) from None


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with their names put under a prefix."""
    return {f"{prefix}{_MARK}{name}": tensor for name, tensor in tensors.items()}


def taken(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that lie under a prefix, with the prefix taken off."""
    head = prefix + _MARK
    return {name[len(head) :]: t for name, t in tensors.items() if name.startswith(head)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of a PyTorch optimizer as ``<parameter>/<name>`` -> tensor."""
    return {
        f"{index}{_MARK}{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the state of `optimizer_tensors` back; learning rates stay what they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(_MARK)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
