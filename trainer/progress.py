"""Progress of a run: one live line on a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from trainer.ranks import is_first

log = logging.getLogger("embtables")

PLAIN_EVERY = 30.0
"""Seconds between two plain lines."""


@cache
def _stderr() -> Console:
    """Return the one console of all lines: where one begins within another, both are shown."""
    return Console(stderr=True)


class Line:
    """One line that changes: live on a terminal, logged now and then otherwise.

    Args:
        console: where to; standard error by default. `rich` honours NO_COLOR.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or _stderr()
        self._live = (
            Live(console=console, transient=True, refresh_per_second=4)
            if console.is_terminal and is_first()
            else None
        )

    def __enter__(self) -> Self:
        self._start = self._shown = time.monotonic()
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, text: Callable[[], str]) -> None:
        """Show a text, made only when it is needed."""
        if self._live:
            self._live.update(Text(text()))
        elif time.monotonic() - self._shown >= PLAIN_EVERY:
            self._shown = time.monotonic()
            log.info(text())


class Preparing(Line):
    """Shows where `data.prepare` stands."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` (of `total`, where it is known) rows or tables are done."""
        self.show(lambda: f"preparing  {what}  {done:,}" + (f" of {total:,}" if total else ""))


class Progress(Line):
    """Shows where a stage of `total` steps stands; use it as a context manager.

    Args:
        title: what is going on, such as ``epoch 3/10``.
        total: number of steps of the stage.
        done: steps that were done before (a resumed run).
        unit: what a step is called.
        console: where to; standard error by default. `rich` honours NO_COLOR.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        unit: str = "step",
        console: Console | None = None,
    ) -> None:
        super().__init__(console)
        self.title = title
        self.unit = unit
        self.total = total
        self._first = self._done = done
        self._rows = 0
        self._loss = float("nan")

    def advance(self, rows: int, loss: float | None = None) -> None:
        """Count one step of that many rows; `loss` is the newest known loss."""
        self._done += 1
        self._rows += rows
        self._loss = self._loss if loss is None else loss
        self.show(self.line)

    def line(self) -> str:
        """Return the line: title, steps, loss, rows per second, time left."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        steps = self._done - self._first
        left = seconds / steps * (self.total - self._done) if steps else float("nan")
        parts = [self.title, f"{self.unit} {self._done}/{self.total}"]
        if self._loss == self._loss:
            parts.append(f"loss {self._loss:.4f}")
        parts.append(f"{self._rows / seconds:,.0f} rows/s")
        if left == left:
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Return h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
