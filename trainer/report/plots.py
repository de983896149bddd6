"""Quality against bytes: one figure a metric, drawn for a phone's width and for paper.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; no two lines have the same
colour and marker.
"""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from trainer.metrics import sign_of
from trainer.report.sections import METRICS, Cell, Section
from trainer.report.texts import round_bytes_text

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "^", "v", "P", "X", "<", ">", "p", "h", "d", "*")
"""Eleven: with six colours the pairs repeat after 66 lines only."""

BASELINES: dict[str, dict[str, Any]] = {
    "full": {"color": "black", "marker": "*", "markersize": 11},
    "narrow": {"color": "black", "marker": "s", "linewidth": 2.2, "markersize": 6},
    "cut": {"color": "#666666", "marker": "D", "linewidth": 2.2, "markersize": 6},
}
OTHERS: dict[str, Any] = {"color": "#C0C0C0", "marker": ".", "linewidth": 0.8, "zorder": 1.5}
MANY = 8
"""Lines besides the baselines that are told apart whatever they are worth."""

TITLES = {"full": "uncompressed", "narrow": "narrow full table", "cut": "frequency cut"}
FOCUS = 3.0
"""What lies further below the best than so many times the median does is drawn at the edge."""


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: of its PNG file, without the ending.
        title: in words.
        figure: the drawing.
    """

    name: str
    title: str
    figure: Figure

    def svg(self) -> str:
        """Return it as SVG for the inside of a page: text as text, no name that another one has."""
        with mpl.rc_context({**STYLE, "svg.hashsalt": self.name}), io.StringIO() as file:
            self.figure.savefig(file, format="svg", metadata={"Date": None})
            text = file.getvalue()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", text)
        text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
        return text.replace("<svg", f'<svg role="img" aria-label="{escape(self.title)}"', 1)

    def write(self, file: Path) -> None:
        """Write it as PNG."""
        with mpl.rc_context(STYLE):
            self.figure.savefig(file, dpi=200)


def quality_plots(section: Section, name: str) -> list[Plot]:
    """Return one figure for each metric of a section, called by its name and the metric."""
    found = []
    for metric in section.metrics:
        title = f"{METRICS[metric]} against bytes: {section.records.name}"
        with mpl.rc_context(STYLE):
            found.append(Plot(f"{name}-{metric}", title, _quality(section, metric)))
    return found


def _quality(section: Section, metric: str) -> Figure:
    lines = _lines(section, metric)
    labels = [label for label, *_ in lines if label]
    columns = 2 if max(map(len, labels)) <= 26 else 1
    rows = -(-(len(labels) + 2) // columns)
    figure = Figure(figsize=(4.7, 3.4 + 0.2 * rows), layout="constrained")
    axes = figure.subplots()
    edge = _edge(
        [value for _, _, cells in lines for *_, value, _ in _points(cells, metric)], metric
    )
    for label, style, cells in lines:
        sizes, values, spreads = zip(*_points(cells, metric), strict=True)
        whiskers = {"capsize": 2.5, "elinewidth": 1, "zorder": 3}
        axes.errorbar(sizes, values, spreads, label=label, **whiskers | style)
        outside = [
            size for size, value in zip(sizes, values, strict=True) if _beyond(value, edge, metric)
        ]
        if outside and edge is not None:
            mark = "v" if sign_of(metric) > 0 else "^"
            axes.plot(
                outside, [edge] * len(outside), mark, color=style["color"], clip_on=False, zorder=4
            )
    _draw_front(axes, section, metric)
    _draw_limits(axes, section, metric)
    if edge is not None:
        axes.set_ylim(*((edge, None) if sign_of(metric) > 0 else (None, edge)))
    _bytes_axis(axes)
    axes.set_ylabel(f"test {METRICS[metric]}")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    return figure


def _lines(section: Section, metric: str) -> list[tuple[str, dict[str, Any], list[Cell]]]:
    """Return label, style and cells by rising bytes of each line: the baselines, then the others.

    Of many lines those that are on the front of no metric are grey and have one label in common; the
    others look the same in all figures.
    """
    cells: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(section.done, key=lambda cell: cell.bytes):
        cells.setdefault((cell.role, cell.method), []).append(cell)
    others = sorted(method for role, method in cells if not role)
    if len(others) > MANY:
        best = {cell for one in section.metrics for cell in section.front(one)}
        others = [method for method in others if best & set(cells["", method])]
    lines, grey = [], 0
    for (role, method), all_sizes in sorted(cells.items(), key=lambda one: _rank(one[0])):
        some = [cell for cell in all_sizes if cell.mean("test", metric) is not None]
        if not some:
            continue
        if role:
            more = ", ".join(f"{k}={v}" for k, v in some[0].setting.items())
            label, style = ", ".join(filter(None, (TITLES[role], more))), BASELINES[role]
        elif method in others:
            label, style = method, _style(others.index(method))
        else:
            label, style, grey = ("" if grey else "others: see the table"), OTHERS, grey + 1
        lines.append((label, style, some))
    return lines


def _style(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linewidth": 1.2,
        "markersize": 5.5,
    }


def _rank(one: tuple[str, str]) -> tuple[int, str]:
    role, method = one
    return [*BASELINES, ""].index(role), method


def _points(cells: Sequence[Cell], metric: str) -> list[tuple[float, float, float]]:
    """Return bytes, mean and standard deviation of each cell."""
    return [
        (cell.bytes, statistics.fmean(numbers), cell.spread("test", metric) or 0.0)
        for cell in cells
        if (numbers := cell.numbers("test", metric))
    ]


def _edge(values: Sequence[float], metric: str) -> float | None:
    """Return where the axis ends on the worse side, None where all values are near each other."""
    sign = sign_of(metric)
    losses = sorted(-sign * value for value in values)
    limit = losses[0] + FOCUS * (statistics.median(losses) - losses[0])
    return -sign * limit if losses[-1] > limit > losses[0] else None


def _beyond(value: float, edge: float | None, metric: str) -> bool:
    return edge is not None and (value - edge) * sign_of(metric) < 0


def _draw_front(axes: Axes, section: Section, metric: str) -> None:
    front = [(cell.bytes, cell.mean("test", metric)) for cell in section.front(metric)]
    largest = max(cell.bytes for cell in section.done)
    sizes, values = zip(*front, (largest, front[-1][1]), strict=True)
    axes.plot(
        sizes,
        values,
        drawstyle="steps-post",
        color="#F0E442",
        linewidth=6,
        alpha=0.6,
        zorder=1,
        label="Pareto front",
    )


def _draw_limits(axes: Axes, section: Section, metric: str) -> None:
    """Draw the quality of the full table, and the best that the data allow where that is known."""
    full = next((cell.mean("test", metric) for cell in section.done if cell.role == "full"), None)
    if full is not None:
        axes.axhline(full, color="black", linestyle="--", linewidth=0.8, zorder=2)
    best = (section.records.bayes or {}).get("test", {}).get(metric)
    if best is not None:
        axes.axhline(
            best, color="#666666", linestyle=":", linewidth=1.4, zorder=2, label="best possible"
        )


def _bytes_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("bytes of the packed tables")
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high < 30 * low else (1, 3) if high < 1000 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(10, subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: round_bytes_text(size)))
    axes.xaxis.set_minor_formatter(NullFormatter())
