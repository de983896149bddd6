"""A finished run on the terminal."""

from __future__ import annotations

from typing import Any


def summary_text(summary: dict[str, Any]) -> str:
    """Return the summary of a run as a few lines for people; summary.json has it all."""
    size, seconds = summary["bytes"], summary["seconds"]
    lines = [f"{'':8}{'AUC':>9}{'logloss':>10}{'GAUC':>9}{'pred/true':>11}{'rows':>12}"]
    for split in ("valid", "test"):
        row = summary[split]
        cells = (_number(row.get(name)) for name in ("auc", "logloss", "gauc", "calibration"))
        auc, loss, gauc, calibration = cells
        lines.append(f"{split:8}{auc:>9}{loss:>10}{gauc:>9}{calibration:>11}{row['rows']:>12,}")
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
