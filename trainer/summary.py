"""A finished run on the terminal."""

from __future__ import annotations

from typing import Any

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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"
