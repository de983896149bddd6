"""The evidence that is shipped: its figures are those of the files it cites."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.common import known_cells
from bench.evidence import EVIDENCE as FILE
from bench.evidence import with_cells
from embtables.compressor import parse_table
from trainer.advice.evidence import Cell, read_evidence
from trainer.advice.facts import Facts

ROOT = Path(__file__).parents[2]
EVIDENCE = read_evidence()
CITED = [
    pytest.param(
        one.source, cell, getattr(one, "metric", "auc"), id=f"{Path(one.source).stem} {cell.cell}"
    )
    for one in (*EVIDENCE.studies, *EVIDENCE.rules)
    if one.source.startswith("bench/")
    for cell in one.cells
]


@cache
def cells_of(source: str) -> list[dict[str, Any]]:
    return known_cells(Path(source).stem)


def rounded(value: float | None, found: float | None, digits: int = 4) -> bool:
    return value is None or (found is not None and abs(value - found) <= 0.51 * 10**-digits)


@pytest.mark.parametrize(("source", "cell", "metric"), CITED)
def test_cited_results_say_so(source: str, cell: Cell, metric: str) -> None:
    (found,) = [one for one in cells_of(source) if one["name"] == cell.cell]
    test, valid = found["test"][metric], found["valid"][metric]
    given = dict(text.partition("=")[::2] for text in found["overrides"])
    assert float(given["ratio"]) == cell.ratio
    asked = parse_table(given.get("table", "full"))
    kinds = (asked.sharing.kind, asked.width.kind, asked.precision.kind)
    mine = parse_table(cell.table)
    assert kinds == (mine.sharing.kind, mine.width.kind, mine.precision.kind)
    assert rounded(cell.test, test["mean"])
    assert rounded(cell.std, test["std"])
    assert rounded(cell.valid, valid["mean"])
    assert rounded(cell.valid_std, valid["std"])
    assert len(test["values"]) == cell.seeds
    assert rounded(cell.cost, found.get("cost"), digits=1)


def test_cells_of_sweeps_are_those_of_their_files() -> None:
    text = FILE.read_text()
    assert with_cells(text) == text, "stale; run python -m bench.pages"
    cell = next(line for line in text.splitlines() if "cell: dnis 0.1}" in line)
    assert with_cells(text.replace(f"{cell}\n", "")) == text
    assert with_cells(text.replace("times: 0.93", "times: 0.94")) == text


def test_recipes_of_cited_results_are_those_that_were_run() -> None:
    ran = [study for study in EVIDENCE.studies if study.recipe]
    assert ran
    for study in ran:
        assert {cell["recipe"] for cell in cells_of(study.source)} == {study.recipe}
        whole = [
            cell["test"][study.metric]["mean"]
            for cell in cells_of(study.source)
            if not any(text.startswith("ratio=") for text in cell["overrides"])
        ]
        assert rounded(study.whole, whole[0])


def test_speed_is_that_of_the_cited_file() -> None:
    found = {
        (str(parse_table(cell["table"])), cell["dim"]): cell["inference_over_full"]
        for cell in cells_of(EVIDENCE.speed.source)
    }
    for cell in EVIDENCE.speed.cells:
        assert rounded(cell.times, found[cell.table, cell.dim], digits=2)
    assert {cell.table for cell in EVIDENCE.speed.cells} >= {
        "lowrank",
        "graphhash",
        "frequency_cut",
    }


def test_figures_of_the_readme_stand_there() -> None:
    (study,) = [study for study in EVIDENCE.studies if study.source.startswith("README.md")]
    text = (ROOT / "README.md").read_text()
    for value in (study.whole, *(cell.test for cell in study.cells)):
        assert f"{value:.3f}".removeprefix("0") in text


def test_rules_name_facts_and_quote_their_figures() -> None:
    known = {field.name for field in fields(Facts)} | {"ratio"}
    for rule in EVIDENCE.rules:
        assert rule.when.keys() <= known
        for cell in rule.cells:
            assert f"{cell.test:.4f}".removeprefix("0") in rule.says


def test_every_study_compares_something() -> None:
    for study in EVIDENCE.studies:
        ratios = [cell.ratio for cell in study.cells]
        assert max(map(ratios.count, ratios)) > 1
        tables = [(cell.table, cell.ratio) for cell in study.cells]
        assert len(set(tables)) == len(tables)
