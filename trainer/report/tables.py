"""The tables of a report, as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from embtables.compressor import parse_table
from trainer.metrics import sign_of
from trainer.report.differences import Compared, Differences
from trainer.report.markup import Column, class_of, heading, line, table
from trainer.report.sections import METRICS, Cell, Section
from trainer.report.texts import UNITS, bytes_text, p_text, signed, unit_of

NONE = "–"
ROLES = {"full": "uncompressed", "narrow": "narrow", "cut": "cut"}


# -- cells ---------------------------------------------------------------------------------------


def cells_table(section: Section, differences: Differences) -> str:
    """Return one line a cell, by size and within it the best first; failures with their reason."""
    unit = unit_of(
        max((cell.mean("bytes", "uncompressed") or 0 for cell in section.done), default=0)
    )
    columns = _cell_columns(section, unit)
    lines = []
    for size, cells in _by_size(section).items():
        lines.append(heading(size or "no budget", len(columns)))
        marks = _marks(section, differences, cells)
        for cell in cells:
            if cell.runs:
                values = [*_quality(section, cell, marks), *_costs(section, cell, unit)]
            else:
                reason = escape(_reason(cell))
                values = [
                    f'<td class="text" colspan="{len(columns) - 1}">'
                    f'<div class="failure">failed: {reason}</div></td>'
                ]
            lines.append(line(_name(cell), values, cell.role))
    return table(f"All cells: {section.records.name}", columns, lines)


def _cell_columns(section: Section, unit: int) -> list[Column]:
    size = f" [{UNITS[unit]}]"
    return [
        Column("table", text=True),
        *(Column(METRICS[m], "mean ± standard deviation over seeds") for m in section.metrics),
        Column("seeds"),
        Column(f"file{size}", "tensors of the packed tables"),
        Column("of full", "file over one float32 row for every id"),
        Column(f"serving{size}", "memory of the tables that are served"),
        Column(f"training{size}", "memory of rows and optimizer state while training"),
        Column("training [s]", "seconds in training, all stages"),
        Column("search [s]", "seconds in what a search does besides, such as measuring candidates"),
        Column("rows/s", "in training"),
        Column("peak [MB]", "most memory of the training process"),
        Column("rows trained", "rows of all stages, over those of the full table's run"),
    ]  # fmt: skip


def _by_size(section: Section) -> dict[str, list[Cell]]:
    """Return asked size -> cells: the largest size first, the best of a size first, failures last."""
    metric = section.metrics[0] if section.metrics else ""
    groups: dict[str, list[Cell]] = {}
    for cell in section.cells:
        groups.setdefault(cell.size, []).append(cell)

    def place(cell: Cell) -> float:
        mean = cell.mean("test", metric)
        return math.inf if mean is None else -sign_of(metric) * mean

    def largest(cells: Sequence[Cell]) -> float:
        return max((cell.bytes for cell in cells if cell.runs), default=0)

    ordered = sorted(groups.items(), key=lambda one: (bool(one[0]), -largest(one[1])))
    return {size: sorted(cells, key=place) for size, cells in ordered}


def _marks(
    section: Section, differences: Differences, cells: Sequence[Cell]
) -> dict[tuple[str, Cell], str]:
    """Return (metric, cell) -> best, for the best of some cells, or alike, for those within noise."""
    marks = {}
    done = [cell for cell in cells if cell.runs]
    for metric in section.metrics if len(done) > 1 else ():
        best, alike = differences.alike(metric, done)
        marks |= {(metric, cell): "alike" for cell in alike} | {(metric, best): "best"}
    return marks


def _quality(section: Section, cell: Cell, marks: dict[tuple[str, Cell], str]) -> list[str]:
    found = []
    for metric in section.metrics:
        mean, spread = cell.mean("test", metric), cell.spread("test", metric)
        text = NONE if mean is None else f"{mean:.4f}"
        text += "" if spread is None else f'<span class="spread"> ± {spread:.4f}</span>'
        found.append(f"<td{class_of(marks.get((metric, cell), ''))}>{text}</td>")
    return [*found, str(len(cell.runs))]


def _costs(section: Section, cell: Cell, unit: int) -> list[str]:
    full = section.full(cell)

    def size(what: str) -> str:
        digits = 0 if unit == 0 else 2 if unit > 1 else 1
        return _number(cell.mean("bytes", what), digits, 1000**unit)

    share = cell.bytes / (cell.mean("bytes", "uncompressed") or math.nan)
    return [
        size("file"),
        f"{share:.1%}" if share >= 0.01 else f"{share:.2%}",
        size("inference"),
        size("training"),
        _number(cell.mean("seconds", "train"), 1),
        _number(cell.mean("seconds", "search"), 1),
        _number(cell.mean("rows_per_second"), 0),
        _number(cell.mean("peak_memory_bytes"), 0, 10**6),
        NONE if full is None else f"{cell.rows_trained / full.rows_trained:.1f} ×",
    ]


def _number(value: float | None, digits: int, unit: float = 1) -> str:
    return NONE if value is None else f"{value / unit:,.{digits}f}"


def _name(cell: Cell) -> str:
    text = f"<code>{escape(cell.method)}</code>"
    if cell.role:
        text += f' <span class="role">{ROLES[cell.role]}</span>'
    if cell.runs and cell.failures:
        text += (
            f'<div class="failure">{len(cell.failures)} of {len(cell.failures) + len(cell.runs)} '
            f"seeds failed: {escape(_reason(cell))}</div>"
        )
    return text


def _reason(cell: Cell) -> str:
    """Return why runs of a cell failed, each reason once."""
    return "; ".join(dict.fromkeys(str(run.failure) for run in cell.failures))


# -- differences ---------------------------------------------------------------------------------


def differences_table(section: Section, differences: Differences) -> str:
    """Return every comparison: difference, interval, p-values, and what can be said."""
    columns = [
        Column("table", text=True),
        Column("size", text=True),
        Column("difference"),
        Column("95 % interval"),
        Column("± rows", "standard error over test rows"),
        Column("± seeds", "standard error over seeds"),
        Column("p"),
        Column("p, Holm", "adjusted for the number of cells"),
        Column("verdict", text=True),
    ]
    lines = []
    for metric in section.metrics:
        for baseline, title in (("full", "the full table"), ("narrow", "the narrow full table")):
            some = [c for c in differences.compared if (c.metric, c.baseline) == (metric, baseline)]
            if some:
                lines.append(heading(f"{METRICS[metric]}, minus that of {title}", len(columns)))
                lines += map(_difference_line, some)
    return table(f"Differences: {section.records.name}", columns, lines)


def _difference_line(one: Compared) -> str:
    found = one.difference
    low, high = found.interval
    known = not math.isnan(low)
    size = one.cell.size
    if one.baseline == "narrow":
        size = f"{bytes_text(one.cell.bytes)} against {bytes_text(one.other.bytes)}"
    return line(
        f"<code>{escape(one.cell.method)}</code>",
        [
            f'<td class="text">{escape(size)}</td>',
            signed(found.value),
            f"{signed(low)} .. {signed(high)}" if known else NONE,
            NONE if found.rows_error is None else f"{found.rows_error:.4f}",
            NONE if found.seeds_error is None else f"{found.seeds_error:.4f}",
            escape(p_text(found.p)),
            escape(p_text(one.p)),
            f'<td class="text">{one.verdict}</td>',
        ],
    )


# -- fields --------------------------------------------------------------------------------------


def fields_table(cell: Cell) -> str:
    """Return one line a logical table of a cell: where the bytes go, what they bring."""
    columns = [
        Column("field", text=True),
        Column("ids"),
        Column("rows", "physical rows; ÷ n: shared with n - 1 other tables"),
        Column("width", "numbers in a stored row"),
        Column("bits", text=True),
        Column("bytes", "shared rows counted in equal parts"),
        Column("share of bytes"),
        Column("collisions", "training occurrences of ids that read the same rows as another id"),
        Column("loss lost", "of the gain on the mean, when the ids are permuted"),
    ]
    summary = cell.shown.summary or {}
    measured = (cell.shown.fields or {}).get("tables", {})
    fields = [one | measured.get(one["table"], {}) for one in summary["tables"]]
    sizes = [one["bytes"] / one.get("readers", 1) for one in fields]
    lines = [
        _field_line(one, size, size / sum(sizes))
        for size, one in sorted(zip(sizes, fields, strict=True), key=lambda pair: -pair[0])
    ]
    return table(f"Fields: {cell.name}", columns, lines)


def _field_line(one: dict[str, Any], size: float, share: float) -> str:
    readers = one.get("readers", 1)
    return line(
        escape(one["table"]),
        [
            f"{one['ids']:,}",
            f"{one['rows']:,}" + (f" ÷ {readers}" if readers > 1 else ""),
            str(one["width"]),
            f'<td class="text">{escape(parse_table(one["method"]).precision.kind)}</td>',
            f"{size:,.0f}",
            _bar(share),
            _bar(one.get("collisions")),
            _bar(one.get("loss")),
        ],
    )


def _bar(share: float | None) -> str:
    """Return a share as a number on a bar."""
    if share is None:
        return f"<td>{NONE}</td>"
    width = min(max(share, 0), 1)
    return f'<td class="bar" style="--share:{width:.1%}">{share:.1%}</td>'
