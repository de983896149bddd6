"""What the pages of methods say of options and of measurements.

    python -m bench.pages

Rewrites the end of every docs/methods/<axis>/<kind>.md, from "## Options" on: the options as the
method's Config has them, and what the results of this folder say of the method; that of
docs/published.md, from "## Side by side" on; that of docs/configuration.md, from "## Keys" on; and the
cells of sweeps that `embtables advise` goes by. A test fails where they say anything else. What a new
result means is for the text above to say. The figure of AUC against bytes of every sweep goes to
docs/pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.common import RESULTS, known_cells, option
from bench.evidence import EVIDENCE, with_cells
from bench.options import START as KEYS
from bench.options import keys, options, table
from embtables.compressor import AXES, DEFAULTS, TableConfig, parse_table
from trainer.report.plots import quality_plots
from trainer.report.sections import read_sections

DOCS = Path(__file__).parents[1] / "docs"
METHODS, PICTURES = DOCS / "methods", DOCS / "pictures"
QUALITY = (
    "movielens",
    *(f"sweep_{data}" for data in ("movielens", "frappe", "frappe_plus", "synthetic")),
    "search_length",
    "graphhash",
)
"""Results that compare tables. Not those of criteo: pieces that small rank nothing."""
SPEED = "compressors"
COMPARED = ("frappe", "bars", "movielens")
"""Results whose cells have the value of a source outside this repository."""
NAMES = {"auc": "AUC", "recall": "recall@20"}
START = "## Options\n"
CONFIGURATION = "configuration.md"
PUBLISHED = "published.md"
SIDE_BY_SIDE = "## Side by side\n"


def generated(axis: str, kind: str) -> str:
    """Return the end of a method's page, from `START` on."""
    return f"{START}\n{options(AXES[axis].get(kind).Config)}\n\n## Measured\n\n{_measured(axis, kind)}\n"


def _measured(axis: str, kind: str) -> str:
    quality = [
        (f"`{question}`", cell["name"], *_numbers(cell, _narrow(cell, cells)))
        for question, cells in _results()
        for cell in cells
        if (axis, kind) in _about(cell)
    ]
    speed = [
        (
            f"`{line['table']}`",
            line["dim"],
            *(f"{line[f'{what}_over_full']:.2f}" for what in ("train", "inference")),
        )
        for line in known_cells(SPEED)
        if (axis, kind) in _methods(parse_table(line["table"]))
    ]
    parts = []
    if quality:
        parts += [
            "Test quality, mean ± standard deviation over seeds; without ±, of one seed. A line is a "
            "cell of `bench/results/<file>.json`; beside it the narrow table of the same ratio.",
            table(("file", "cell", "bytes on file", "test", "narrow table"), quality),
        ]
    if speed:
        parts += [
            f"Time on a CPU over that of a full table, 26 tables (`bench/results/{SPEED}.json`):",
            table(("table", "width", "training step", "look-up"), speed),
        ]
    if DEFAULTS[axis] == kind and not parts:
        parts = [f"Every result that names no other {axis}."]
    return "\n\n".join(parts or ["Not measured yet: no result in `bench/results` is about it."])


def side_by_side() -> str:
    """Return the end of the page of published numbers, from `SIDE_BY_SIDE` on."""
    lines = [
        (f"`{question}`", cell["name"], metric, value, *_beside(cell["test"][metric], value))
        for question in COMPARED
        for cell in known_cells(question)
        for metric, value in cell.get("published", {}).items()
    ]
    head = ("file", "cell", "metric", "published", "here", "seeds", "here - published")
    return f"{SIDE_BY_SIDE}\n{table(head, lines)}\n"


def _beside(found: dict[str, Any], published: float) -> tuple[str, int, str]:
    numbers = [found["mean"], *([] if found["std"] is None else [found["std"]])]
    text = " ± ".join(f"{number:.4f}".removeprefix("0") for number in numbers)
    return text, len(found["values"]), f"{found['mean'] - published:+.4f}"


def _results() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for question in QUALITY:
        if cells := [cell for cell in known_cells(question) if "overrides" in cell]:
            yield question, cells


def _about(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (axis, kind) of what a cell measures; a plain table with a ratio is a narrow one."""
    if methods := _methods(parse_table(option(cell, "table") or "full")):
        return methods
    return [("width", "uniform") if option(cell, "ratio") else ("sharing", "full")]


def _methods(config: TableConfig) -> list[tuple[str, str]]:
    asked = ((axis, getattr(config, axis).kind) for axis in AXES)
    return [(axis, kind) for axis, kind in asked if kind != DEFAULTS[axis]]


def _narrow(cell: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the cell of the narrow table of the same ratio, if there is one."""
    same = [
        other
        for other in cells
        if ("width", "uniform") in _about(other)
        and float(option(other, "ratio") or 1) == float(option(cell, "ratio") or 1)
    ]
    return same[0] if same and same[0] is not cell else None


def _numbers(cell: dict[str, Any], narrow: dict[str, Any] | None) -> tuple[str, str, str]:
    if "test" not in cell:
        return "", f"failed: {cell['failures'][0]}", ""
    size = cell["bytes"]["file"]
    share = 100 * size / cell["bytes"]["uncompressed"]
    beside = ""
    if narrow and "test" in narrow:
        beside = f"{spread(narrow)} ({narrow['bytes']['file']:,} bytes)"
    return f"{size:,} ({share:.1f} %)", spread(cell), beside


def spread(cell: dict[str, Any]) -> str:
    """Return the main metric on test, such as ``AUC .8935 ± .0008``."""
    name = next(name for name in NAMES if name in cell["test"])
    found = cell["test"][name]
    numbers = [found["mean"], *([] if found["std"] is None else [found["std"]])]
    return f"{NAMES[name]} " + " ± ".join(f"{number:.4f}".removeprefix("0") for number in numbers)


def draw() -> None:
    """Draw AUC against bytes of every sweep."""
    for file in sorted(RESULTS.glob("sweep_*.json")):
        (section,) = read_sections([file])
        name = file.stem.removeprefix("sweep_")
        (plot,) = (plot for plot in quality_plots(section, name) if plot.name == f"{name}-auc")
        plot.write(PICTURES / f"{name}.png")


def main() -> None:
    """Rewrite the ends of the pages, the evidence, and the pictures."""
    draw()
    EVIDENCE.write_text(with_cells(EVIDENCE.read_text()))
    page = DOCS / PUBLISHED
    page.write_text(page.read_text().partition(SIDE_BY_SIDE)[0] + side_by_side())
    page = DOCS / CONFIGURATION
    page.write_text(page.read_text().partition(KEYS)[0] + keys())
    for axis, registry in AXES.items():
        for kind in registry.names():
            page = METHODS / axis / f"{kind}.md"
            written = page.read_text().partition(START)[0]
            page.write_text(written + generated(axis, kind))


if __name__ == "__main__":
    main()
