"""Reports: one page, its pictures and its numbers, from any number of runs and sweeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trainer.report.differences import Differences
from trainer.report.lines import lines_of, write_lines
from trainer.report.page import page, section_html
from trainer.report.plots import quality_plots
from trainer.report.sections import Section, read_sections


def write_report(paths: Sequence[Path], output: Path, *, fields: bool = False) -> Path:
    """Write the report of run directories, sweep directories and files of records.

    Into the output directory go index.html, a PNG of each figure, results.csv and results.json (one line
    a run), and records/<name>.json: all that the page is made of, from which this function makes it
    again where the runs are not.

    Args:
        paths: what to report.
        output: directory, made if it does not exist.
        fields: measure the fields of the cells that are shown, where runs and data are at hand: with
            one seed of each, about as long as evaluating 16,384 rows once for every field.

    Returns:
        The page.

    Raises:
        ValueError: a path is neither a run nor a sweep, or two runs contradict each other.
    """
    sections = read_sections(paths)
    (output / "records").mkdir(parents=True, exist_ok=True)
    parts, lines = [], []
    for section, name in zip(sections, _names(sections), strict=True):
        if fields:
            section.measure_fields()
        differences = Differences(section)
        plots = quality_plots(section, name)
        for plot in plots:
            plot.write(output / f"{plot.name}.png")
        parts.append(section_html(section, differences, plots))
        lines += lines_of(section)
        known = section.enriched().model_copy(update={"rows_errors": differences.rows_errors})
        known.write(output / "records" / f"{name}.json")
    write_lines(lines, output)
    index = output / "index.html"
    index.write_text(page("Embedding tables compared", parts))
    return index


def _names(sections: Sequence[Section]) -> list[str]:
    """Return a name for the files of each section, another for each."""
    names: list[str] = []
    for section in sections:
        name = re.sub(r"[^\w.-]+", "-", section.records.name)
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names
