"""Cells of our results in the evidence of `embtables advise` (trainer/advice/evidence.yaml)."""

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
_SPEED = re.compile(
    r"(speed:\n  source: bench/results/(\w+)\.json\n(?:  \w.*\n)+?  cells:\n)(?:    - .*\n)*"
)


def with_cells(text: str) -> str:
    """Return the YAML with the cells of sweeps, and the look-ups, as their files have them.

    Of both the tables without options count.
    """

    def study(found: re.Match[str]) -> str:
        done = [cell for cell in known_cells(found[2]) if "test" in cell]
        told = [cell for cell in done if "(" not in cell["name"]]
        lines = (f"      - {{{_cell(cell)}}}\n" for cell in told if option(cell, "ratio"))
        return found[1] + "".join(sorted(lines, key=_falling))

    def speed(found: re.Match[str]) -> str:
        told = [cell for cell in known_cells(found[2]) if "(" not in cell["table"]]
        return found[1] + "".join(
            f"    - {{{_look_up(c)}}}\n" for c in told if c["table"] != "full"
        )

    return _SPEED.sub(speed, _STUDY.sub(study, text))


def _look_up(cell: dict[str, Any]) -> str:
    return f"table: {cell['table']}, dim: {cell['dim']}, times: {cell['inference_over_full']:.2f}"


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
