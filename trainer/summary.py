"""Finished runs on the terminal."""

from __future__ import annotations

from typing import Any

from trainer.records import Record, Records, over_seeds, spread_text

CLICKS = {"auc": "AUC", "logloss": "logloss", "gauc": "GAUC", "calibration": "pred/true"}
RETRIEVAL = {"recall": "recall@{k}", "recall_capped": "capped@{k}", "ndcg": "NDCG@{k}"}
"""Metric -> title of its column."""


def summary_text(summary: dict[str, Any]) -> str:
    """Return the summary of a run as a few lines for people; summary.json has it all."""
    size, seconds = summary["bytes"], summary["seconds"]
    columns = RETRIEVAL if "recall" in summary["test"] else CLICKS
    titles = [title.format(k=summary["test"].get("top_k")) for title in columns.values()]
    lines = [f"{'':8}{''.join(f'{title:>11}' for title in titles)}{'rows':>12}"]
    for split in ("valid", "test"):
        row = summary[split]
        cells = "".join(f"{_number(row.get(name)):>11}" for name in columns)
        lines.append(f"{split:8}{cells}{row['rows']:>12,}")
    share = size["inference"] / size["uncompressed"]
    rate = summary["rows_per_second"]
    lines += [
        f"epoch   {summary['epoch']:g}, chosen by validation {summary['monitor']}",
        f"tables  {summary['table']}: {size['file']:,} bytes on file, {share:.1%} of "
        f"{size['uncompressed']:,}; {size['training']:,} in training",
        f"speed   {rate:,.0f} rows/s in training, {seconds['total']:.1f} s in all, "
        f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB of memory",
    ]
    return "\n".join(lines)


def sweep_text(records: Records) -> str:
    """Return one line a cell, means and deviations over its seeds, and why runs failed."""
    cells: dict[str, list[Record]] = {}
    for one in records.runs:
        cells.setdefault(" ".join(f"{key}={value}" for key, value in one.cell.items()), []).append(
            one
        )
    done = [one.summary for one in records.runs if one.summary is not None]
    columns = RETRIEVAL if done and "recall" in done[0]["test"] else CLICKS
    titles = [
        title.format(k=done[0]["test"].get("top_k") if done else "") for title in columns.values()
    ]
    width = max(map(len, cells), default=0)
    lines = [
        f"{'':{width}}{'seeds':>7}{''.join(f'{title:>19}' for title in titles)}"
        f"{'bytes':>14}{'of full':>9}{'rows/s':>10}"
    ]
    reasons = []
    for cell, runs in cells.items():
        found = [one.summary for one in runs if one.summary is not None]
        lines.append(f"{cell:{width}}{len(found):>7}" + (_cell(found, columns) if found else ""))
        failures = dict.fromkeys(one.failure for one in runs if one.failure is not None)
        reasons += [f"failed: {cell}: {reason}" for reason in failures]
    return "\n".join([*lines, *reasons])


def _cell(found: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Return the numbers of a cell: metrics of the test rows, bytes of its first seed, mean speed."""
    texts = []
    for name in columns:
        values = [one["test"].get(name) for one in found]
        known = None if None in values else over_seeds(values)
        texts.append(f"{spread_text(known):>19}")
    size = found[0]["bytes"]
    speed = over_seeds([one["rows_per_second"] or 0.0 for one in found])["mean"]
    share = size["file"] / size["uncompressed"]
    return "".join(texts) + f"{size['file']:>14,}{share:>9.2%}{speed:>10,.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"
