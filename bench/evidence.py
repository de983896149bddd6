"""Cells of our sweeps in the evidence of `embtables advise` (trainer/advice/evidence.yaml)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench.common import known_cells, option
from embtables.compressor import parse_table

EVIDENCE = Path(__file__).parents[1] / "trainer" / "advice" / "evidence.yaml"
_STUDY = re.compile(
    r"(  - source: bench/results/(sweep_\w+)\.json\n(?:    \w.*\n)+?    cells:\n)(?:      - .*\n)*"
)


def with_cells(text: str) -> str:
    """Return the YAML with the cells of the studies that are sweeps as their files have them.

    Of a sweep the tables without options count.
    """

    def study(found: re.Match[str]) -> str:
        done = [cell for cell in known_cells(found[2]) if "test" in cell]
        told = [cell for cell in done if "(" not in cell["name"]]
        lines = (f"      - {{{_cell(cell)}}}\n" for cell in told if option(cell, "ratio"))
        return found[1] + "".join(sorted(lines, key=_falling))

    return _STUDY.sub(study, text)


def _cell(cell: dict[str, Any]) -> str:
    table = str(parse_table(option(cell, "table") or "full"))
    entries: dict[str, Any] = {"table": table, "ratio": option(cell, "ratio")}
    for split, std in (("valid", "valid_std"), ("test", "std")):
        found = cell[split]["auc"]
        entries[split] = f"{found['mean']:.4f}"
        if found["std"] is not None:
            entries[std] = f"{found['std']:.4f}"
    entries |= {"seeds": len(cell["test"]["auc"]["values"]), "cost": f"{cell['cost']:.1f}"}
    if table == "full":
        entries["width"] = cell["width"]
    return ", ".join(f"{key}: {value}" for key, value in (entries | {"cell": cell["name"]}).items())


def _falling(line: str) -> float:
    return -float(line.partition("ratio: ")[2].partition(",")[0])
