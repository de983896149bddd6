"""What metrics.jsonl gets, as event files that TensorBoard shows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Board:
    """Event files of a run; those of a resumed run take the place of what was trained twice.

    Args:
        folder: where they are written.

    Raises:
        ValueError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboardX") is None:
            raise ValueError(
                "log.to: tensorboard needs the package tensorboardX; "
                "pip install tensorboardX, or leave it out: log.to=[jsonl]"
            )
        self._folder = folder
        self._writer: Any = None
        self._begin = 0

    def rewind(self, step: int) -> None:
        """Have points after a step hidden: they will be written again."""
        self._begin = step + 1

    def add(self, row: dict[str, Any]) -> None:
        """Write the numbers of an evaluation."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # Files are named by the second; one more of the same second must not replace the first.
            own = {"filename_suffix": f".{self._begin}", "purge_step": self._begin}
            self._writer = SummaryWriter(str(self._folder), **own)
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{row['split']}/{name}", float(value), row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file that is open."""
        if self._writer is not None:
            self._writer.close()
