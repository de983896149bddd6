"""The page of a report: one static HTML file without scripts, fonts or pictures from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from trainer.report.differences import Differences
from trainer.report.plots import Plot
from trainer.report.sections import TABLES, Cell, Section
from trainer.report.tables import cells_table, differences_table, fields_table
from trainer.report.words import front_words, statement

LEGEND = (
    "Within a size: ★ the best mean, ≈ a 95 % interval of the difference from it that holds zero. Sizes "
    "are measured: <i>file</i> is what is shipped, <i>serving</i> what it takes in memory, "
    "<i>training</i> rows and optimizer state."
)
PLOTS = (
    "Whiskers are one standard deviation over seeds. A triangle at the edge stands for a cell that is "
    "worse than the figure shows; the table has its value."
)
FIELDS = (
    "<i>Collisions</i>: training occurrences whose id reads exactly the rows of another id. "
    "<i>Loss lost</i>: what the model loses of its gain on predicting the mean when the ids of the "
    "field are permuted among validation rows; shares need not add up to 100 %."
)


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole page of parts that are HTML already."""
    style = (files("trainer.report") / "style.css").read_text()
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>"
        f"<body><h1>{escape(title)}</h1>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def section_html(section: Section, differences: Differences, plots: Sequence[Plot]) -> str:
    """Return all that is said of a section."""
    parts = [
        f"<h2>{escape(section.records.name)}</h2>",
        f"<p>{_subject(section)}</p>",
        "<h3>Quality against bytes</h3>",
        f'<div class="figures">{"".join(map(_figure, plots))}</div>',
        f'<p class="note">{PLOTS}</p>',
        front_words(section),
        "<h3>What can be said</h3>",
        statement(section, differences),
        "<h3>All cells</h3>",
        cells_table(section, differences),
        f'<p class="note">{LEGEND}{_machines(section)}</p>',
    ]
    if differences.compared:
        parts.append(_folded("All differences", differences_table(section, differences)))
    parts += ["<h3>Where the bytes go</h3>", _fields(section)]
    parts += ["<h3>What was run</h3>", *_configuration(section)]
    return "\n".join(parts)


def _subject(section: Section) -> str:
    records = section.records
    rows = next(
        (run.summary["rows"] for cell in section.done for run in cell.runs.values() if run.summary),
        {},
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    finished = sum(len(cell.runs) for cell in section.cells)
    failed = sum(len(cell.failures) for cell in section.cells)
    runs = f"{len(section.cells)} cells, {finished} runs" + (f", {failed} failed" if failed else "")
    return " · ".join(
        filter(None, (f"recipe <code>{escape(records.recipe)}</code>", runs, f"rows: {counts}"))
    )


def _machines(section: Section) -> str:
    if len(section.machines) < 2:
        return ""
    each = "; ".join(f"{runs} runs on {escape(name)}" for name, runs in section.machines.items())
    return f" Seconds and rows/s compare only within one machine, and there are several: {each}."


def _figure(plot: Plot) -> str:
    return f"<figure>{plot.svg()}</figure>"


def _fields(section: Section) -> str:
    shown = section.shown_fields()
    parts = [f'<p class="note">{FIELDS}</p>']
    if not any(cell.shown.fields for cell in shown):
        parts.append(
            '<p class="note">Not measured yet: <code>embtables report --fields</code> does it where the '
            "runs and their data are. Until then rows that several tables share are counted in each.</p>"
        )
    parts += [
        _folded(f"Fields of {cell.name}", fields_table(cell), is_open=index == 0)
        for index, cell in enumerate(c for c in shown if TABLES in (c.shown.summary or {}))
    ]
    return "".join(parts)


def _configuration(section: Section) -> list[str]:
    records = section.records
    return [
        _folded("Configuration that the cells change", _yaml(records.config)),
        _folded("What each cell changes", _yaml([_changes(cell) for cell in section.cells])),
        *(
            [_folded("Tuned on validation, in every cell", _yaml(records.tune))]
            if records.tune
            else []
        ),
        _folded("Environment", _yaml(records.environment)),
    ]


def _changes(cell: Cell) -> dict[str, Any]:
    tuned = {seed: run.tuned for seed, run in cell.runs.items() if run.tuned}
    return {**cell.values, **({"tuned, by seed": tuned} if tuned else {})}


def _yaml(value: Mapping[str, Any] | Sequence[Any]) -> str:
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100)
    return f"<pre>{escape(text)}</pre>"


def _folded(title: str, html: str, is_open: bool = False) -> str:
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escape(title)}</summary>{html}</details>"
