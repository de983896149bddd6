"""The report: planted numbers come out where they belong, and the page stands alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trainer.cli import main
from trainer.config import RunConfig
from trainer.loop import train
from trainer.records import Record, Records, RowsError, read_records
from trainer.report import write_report
from trainer.report.differences import Differences
from trainer.report.sections import Section, changes, read_sections
from trainer.runs import FinishedRun
from trainer.significance import AUC

Tiny = Callable[..., RunConfig]
UNCOMPRESSED = 1000
SPREAD = 0.001


def summary(table: str, ratio: float | None, auc: float, seed: int, size: int) -> dict[str, Any]:
    test = {"auc": auc, "logloss": 1 - auc, "calibration": 1.0, "rows": 500}
    return {
        "valid": test,
        "test": test,
        "epoch": 1.0,
        "epochs_trained": 2.0,
        "stages": [{"name": "train", "rows": 100}] * (3 if table == "dnis" else 1),
        "seed": seed,
        "data": "planted-0",
        "model": "fm",
        "table": table,
        "budget": None,
        "ratio": ratio,
        "bytes": {
            "file": size,
            "inference": size + 1,
            "training": 3 * size,
            "uncompressed": UNCOMPRESSED,
        },
        "rows": {"train": 400, "valid": 50, "test": 50},
        "rows_per_second": 1234.5,
        "seconds": {"train": 12.0, "total": 20.0},
        "peak_memory_bytes": 5 * 10**8,
        "tables": [
            {"table": "user", "method": table, "ids": 10, "rows": 5, "width": 4, "bytes": size}
        ],
    }


OWN = {"dnis": (-1, 0, 1), "full": (0, 1, -1)}
"""Table -> what its seeds have of their own, in tenths of the common spread; else (1, -1, 0)."""

CELLS: dict[tuple[str, float | None], tuple[float, int]] = {
    ("full", None): (0.80, 1000),
    ("full", 0.5): (0.79, 500),
    ("full", 0.2): (0.76, 180),
    ("hash", 0.5): (0.75, 490),
    ("hash", 0.2): (0.74, 200),
    ("dnis", 0.2): (0.805, 200),
    ("frequency_cut", 0.2): (0.80495, 200),
}
"""Table and ratio -> AUC and bytes."""


def runs_of(table: str, ratio: float | None, auc: float, size: int) -> list[Record]:
    cell = {"table": table} | ({} if ratio is None else {"ratio": ratio})
    return [
        Record(
            cell=cell,
            seed=seed,
            summary=summary(
                table, ratio, auc + SPREAD * (seed - 1) + SPREAD / 10 * own, seed, size
            ),
        )
        for seed, own in enumerate(OWN.get(table, (1, -1, 0)))
    ]


def planted(**changes: Any) -> Records:
    runs = [run for key, value in CELLS.items() for run in runs_of(*key, *value)]
    failure = Record(cell={"table": "qr", "ratio": 0.2}, seed=0, failure="too <b>small</b> & odd")
    half = Record(cell={"table": "hash", "ratio": 0.2}, seed=3, failure="killed")
    return Records(
        name="Planted data",
        recipe="planted/fm",
        config={"data": {"kind": "planted"}, "table": "full", "ratio": None, "budget": None},
        axes={"table": ["full", "hash"], "ratio": [0.5, 0.2]},
        environment={"python": "3.11"},
        bayes={"test": {"auc": 0.82, "logloss": 0.18}},
        runs=[*runs, failure, half],
    ).model_copy(update=changes)


@pytest.fixture
def section(tmp_path: Path) -> Section:
    planted().write(tmp_path / "planted.json")
    (section,) = read_sections([tmp_path / "planted.json"])
    return section


def written(tmp_path: Path, records: Records) -> tuple[Path, str]:
    """Return the folder of the report of records, and its page."""
    records.write(tmp_path / "given.json")
    index = write_report([tmp_path / "given.json"], tmp_path / "report")
    return index.parent, index.read_text()


class Lines(HTMLParser):
    """Table rows as lists of texts and of the classes of their cells; elements must be closed."""

    VOID = ("meta", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.classes: list[list[str]] = []
        self.inside = False
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag not in ("script", "link", "img", "iframe")
        assert not [key for key in given if key.startswith("on")]
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.classes.append([])
        if tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")
            self.classes[-1].append(given.get("class") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data

    def line(self, *start: str) -> tuple[list[str], list[str]]:
        """Return the first row that begins so, and the classes of its cells."""
        place = next(i for i, row in enumerate(self.rows) if row[: len(start)] == list(start))
        return self.rows[place], self.classes[place]


def test_front_holds_what_no_smaller_cell_beats(section: Section) -> None:
    assert [cell.name for cell in section.front("auc")] == ["full, ratio 0.2", "dnis, ratio 0.2"]
    assert section.front("logloss") == section.front("auc")


def test_baseline_is_the_largest_narrow_table_that_is_no_larger(section: Section) -> None:
    cells = {cell.name: cell for cell in section.done}
    nearest = {name: section.narrow(cell) for name, cell in cells.items()}
    assert {name: cell.name for name, cell in nearest.items() if cell} == {
        "full": "full, ratio 0.5",
        "full, ratio 0.5": "full, ratio 0.2",
        "hash, ratio 0.5": "full, ratio 0.2",  # 490 bytes are less than 500
        "hash, ratio 0.2": "full, ratio 0.2",
        "dnis, ratio 0.2": "full, ratio 0.2",
        "frequency_cut, ratio 0.2": "full, ratio 0.2",
    }
    assert [cell.role for cell in section.done] == ["full", "narrow", "narrow", "", "", "", "cut"]


@pytest.mark.parametrize(("size", "ratio"), [(497, 0.5), (490, 0.2), (520, 0.5)])
def test_baseline_may_be_a_few_bytes_larger(tmp_path: Path, size: int, ratio: float) -> None:
    runs = [*planted().runs, *runs_of("qr", 0.5, 0.7, size)]
    planted(runs=runs).write(tmp_path / "r.json")
    (section,) = read_sections([tmp_path / "r.json"])
    (cell,) = (cell for cell in section.done if cell.table == "qr")
    narrow = section.narrow(cell)
    assert narrow is not None
    assert narrow.name == f"full, ratio {ratio}"


def test_failures_are_told_once_and_not_of_what_was_run_since(tmp_path: Path) -> None:
    planted().write(tmp_path / "old.json")
    again = [run.model_copy(update={"seed": 3}) for run in runs_of("hash", 0.2, 0.74, 200)[:1]]
    planted(runs=again).write(tmp_path / "new.json")
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    for given, left in (
        ([old, old], {"qr", "hash"}),
        ([old, new], {"qr"}),
        ([new, old], {"qr"}),
    ):
        (section,) = read_sections(given)
        failed = [run.cell["table"] for cell in section.cells for run in cell.failures]
        assert sorted(failed) == sorted(left)


def test_other_settings_have_other_baselines(tmp_path: Path) -> None:
    wide = [
        run.model_copy(update={"cell": run.cell | {"model.dim": 8}})
        for run in runs_of("hash", 0.5, 0.7, 400)
    ]
    planted(runs=[*planted().runs, *wide]).write(tmp_path / "r.json")
    (section,) = read_sections([tmp_path / "r.json"])
    last = section.done[-1]
    assert last.name == "hash, model.dim=8, ratio 0.5"
    assert section.full(last) is section.narrow(last) is None


def test_sweeps_are_cells_of_what_their_configurations_change(tmp_path: Path) -> None:
    """A size and a number of epochs that all runs of a sweep have set them apart from others."""
    base = planted().config | {"train": {"epochs": 3}}
    given: dict[str, tuple[dict[str, Any], tuple[str, float | None]]] = {
        "first": ({}, ("full", None)),
        "narrow": ({"ratio": 0.5}, ("full", 0.5)),
        "longer": ({"train": {"epochs": 9}}, ("full", None)),
        "hash": ({"table": "hash"}, ("hash", 0.2)),
    }
    for name, (changed, (table, ratio)) in given.items():
        kept = {"table": table} if name == "first" else {}
        asked = {"ratio": ratio} if name == "hash" else {}
        runs = [
            run.model_copy(update={"cell": kept | asked})
            for run in runs_of(table, ratio, *CELLS[table, ratio])
        ]
        axes = {"data.rows": [1]}
        planted(name=name, config=base | changed, axes=axes, runs=runs).write(
            tmp_path / f"{name}.json"
        )
    (section,) = read_sections([tmp_path / f"{name}.json" for name in given])
    assert {cell.name: len(cell.runs) for cell in section.cells} == {
        "full": 3,
        "full, ratio 0.5": 3,
        "full, train.epochs=9": 3,
        "hash, ratio 0.2": 3,
    }
    assert [cell.role for cell in section.cells] == ["full", "narrow", "full", ""]
    # What is written down is read the same, whatever the first configuration has.
    names = ("narrow", "first", "longer", "hash")
    (section,) = read_sections([tmp_path / f"{name}.json" for name in names])
    section.enriched().write(tmp_path / "all.json")
    (again,) = read_sections([tmp_path / "all.json"])
    assert [(c.name, len(c.runs)) for c in again.cells] == [
        (c.name, len(c.runs)) for c in section.cells
    ]
    assert {c.name for c in again.cells} == {c.name for c in section.cells} > {"full"}


def test_changes_are_also_what_a_configuration_takes_back() -> None:
    rates = {"factor": 0.1, "min_lr": 1e-6}
    one = {
        "train": {"reduce_lr": rates, "seed": 0},
        "fields": {"a": "hash", "b": "qr"},
        "ratio": 0.5,
    }
    two = {"train": {"reduce_lr": None, "seed": 1}, "fields": {"a": "hash"}, "ratio": 0.1}
    assert changes(one, two) == {"train.reduce_lr": None, "fields.b": None}
    assert changes(two, one) == {
        "train.reduce_lr.factor": 0.1,
        "train.reduce_lr.min_lr": 1e-6,
        "fields.b": "qr",
    }
    assert changes(one, one) == {}


def test_other_fields_are_compared_with_plain_tables(tmp_path: Path) -> None:
    mixed = [
        run.model_copy(update={"cell": run.cell | {"fields.user": "hash"}})
        for run in runs_of("full", None, 0.7, 900)
    ]
    planted(runs=[*planted().runs, *mixed]).write(tmp_path / "r.json")
    (section,) = read_sections([tmp_path / "r.json"])
    last = section.done[-1]
    assert (last.name, last.role) == ("full, fields.user=hash", "")
    full, narrow = section.full(last), section.narrow(last)
    assert full
    assert narrow
    assert (full.name, narrow.name) == ("full", "full, ratio 0.5")


def test_verdicts_are_those_that_were_planted(section: Section) -> None:
    differences = Differences(section)
    found = {
        (one.baseline, one.cell.name): one.verdict
        for one in differences.compared
        if one.metric == "auc"
    }
    assert found["full", "hash, ratio 0.5"] == found["full", "hash, ratio 0.2"] == "worse"
    assert found["full", "dnis, ratio 0.2"] == "better"
    assert found["narrow", "dnis, ratio 0.2"] == "better"
    assert not any(name == "full" for _, name in found)
    (one,) = (
        c
        for c in differences.compared
        if (c.metric, c.baseline, c.cell.table) == ("auc", "full", "dnis")
    )
    assert one.difference.value == pytest.approx(0.005)
    assert one.difference.rows_error is None
    assert one.p >= one.difference.p


def test_kept_errors_of_test_rows_are_joined(tmp_path: Path) -> None:
    cells = {"table": "dnis", "ratio": 0.2}, {"table": "full"}
    known = RowsError(metric="auc", cells=cells, seeds=[0, 1, 2], error=0.01)
    records = planted(rows_errors=[known])
    folder, page = written(tmp_path, records)
    (section,) = read_sections([tmp_path / "given.json"])
    found = [c for c in Differences(section).compared if c.difference.rows_error is not None]
    assert [(c.cell.table, c.other.table, c.metric) for c in found] == [("dnis", "full", "auc")]
    assert found[0].verdict == "not told apart"
    assert "(in 1 comparisons)" in page
    assert read_records(folder / "records" / "Planted-data.json").rows_errors == [known]


def test_errors_of_test_rows_are_those_of_the_most_seeds_known(tmp_path: Path) -> None:
    cells = {"table": "full"}, {"table": "dnis", "ratio": 0.2}  # the other way round
    errors = {(0,): 0.03, (0, 2): 0.02, (0, 5): 0.01, (0, 1, 2, 3): 0.005}
    known = [
        RowsError(metric="auc", cells=cells, seeds=list(seeds), error=error)
        for seeds, error in errors.items()
    ]
    folder, page = written(tmp_path, planted(rows_errors=known))
    (section,) = read_sections([tmp_path / "given.json"])
    found = [c.difference.rows_error for c in Differences(section).compared]
    assert [error for error in found if error is not None] == [0.02]
    assert "(in 1 comparisons)" in page
    assert read_records(folder / "records" / "Planted-data.json").rows_errors == known


def test_statement_says_what_was_compared(tmp_path: Path) -> None:
    _, html = written(tmp_path, planted())
    text = " ".join(re.sub(r"<[^>]+>", "", html.replace("<li>", " ")).split())
    assert "Test AUC against the full table, 6 cells: 2 better: dnis +0.0050 (ratio 0.2)" in text
    assert (
        "4 worse: full −0.0100 (ratio 0.5), −0.0400 (ratio 0.2); hash −0.0500 (ratio 0.5)" in text
    )
    assert "Test AUC against the narrow full table" in text
    assert "runs with the same seeds (3 seeds)" in text


def test_many_lines_leave_colour_to_the_front(tmp_path: Path) -> None:
    more = [run for i in range(9) for run in runs_of(f"m{i}", 0.5, 0.7 + i / 1000, 480)]
    _, html = written(tmp_path, planted(runs=[*planted().runs, *more]))
    assert html.count(">others: see the table</text>") == 2
    assert ">dnis</text>" in html
    assert ">m8</text>" not in html
    assert Lines(html).line("m8")[0][1].startswith("0.7080 ±")


def test_cells_are_lines_with_spread_marks_and_costs(tmp_path: Path) -> None:
    page = Lines(written(tmp_path, planted())[1])
    head = page.rows[0]
    assert head[:5] == ["table", "AUC", "logloss", "seeds", "file [kB]"]
    line, classes = page.line("dnis")
    spread = np.std(
        [run.summary["test"]["auc"] for run in runs_of("dnis", 0.2, 0.805, 200) if run.summary],
        ddof=1,
    )
    assert line[:3] == ["dnis", f"0.8050 ± {spread:.4f}", f"0.1950 ± {spread:.4f}"]
    cells = dict(zip(head, line, strict=True))
    assert cells["seeds"] == "3"
    assert cells["file [kB]"] == "0.2"
    assert cells["of full"] == "20.0%"
    assert cells["rows/s"] == "1,234"
    assert cells["rows trained"] == "3.0 ×"
    assert classes[1] == "best"
    assert page.line("frequency_cut cut")[1][1] == "alike"  # 0.00005 below, spread 0.0001
    assert page.line("full narrow", "0.7600 ± 0.0010")[1][1] == ""


def test_sizes_come_by_falling_bytes_and_their_best_first(tmp_path: Path) -> None:
    page = Lines(written(tmp_path, planted())[1])
    last = page.rows.index(page.line("qr")[0])
    assert [row[0] for row in page.rows[: last + 1]] == [
        *("table", "no budget", "full uncompressed"),
        *("ratio 0.5", "full narrow", "hash"),
        *("ratio 0.2", "dnis", "frequency_cut cut", "full narrow"),
        *("hash1 of 4 seeds failed: killed", "qr"),
    ]


def test_failures_keep_their_reason_in_place_of_numbers(tmp_path: Path) -> None:
    folder, page = written(tmp_path, planted())
    assert Lines(page).line("qr")[0] == ["qr", "failed: too <b>small</b> & odd"]
    frame = pd.read_csv(folder / "results.csv")
    failed = frame[frame.failure.notna()]
    assert list(failed.table) == ["hash", "qr"]
    assert failed.test_auc.isna().all()


def test_speeds_of_several_machines_are_told_apart(tmp_path: Path) -> None:
    old, new = ({"cpu": name, "cores": 2, "threads": 1} for name in ("A & B", "C"))
    moved = [
        run.model_copy(update={"environment": {"cpu": "C"}} if run.cell["table"] == "hash" else {})
        for run in planted().runs
    ]
    note = "Seconds and rows/s compare only within one machine"
    assert note not in written(tmp_path, planted(environment=old))[1]
    folder, html = written(tmp_path, planted(environment=old, runs=moved))
    machines = "A &amp; B, 2 cores, 1 thread", "C, 2 cores, 1 thread"
    assert (
        f"{note}, and there are several: 15 runs on {machines[0]}; 6 runs on {machines[1]}." in html
    )
    frame = pd.read_csv(folder / "results.csv")
    assert set(frame[frame.table == "hash"].machine) == {machines[1]}
    # Runs of another file bring their own machine along, and keep it in the records of the report.
    planted(name="one", environment=old, runs=runs_of("full", None, 0.8, 1000)).write(
        tmp_path / "one.json"
    )
    planted(name="two", environment=new, runs=runs_of("hash", 0.5, 0.7, 490)).write(
        tmp_path / "two.json"
    )
    (section,) = read_sections([tmp_path / "one.json", tmp_path / "two.json"])
    section.enriched().write(tmp_path / "both.json")
    (again,) = read_sections([tmp_path / "both.json"])
    assert section.machines == again.machines == {"A & B, 2 cores, 1 thread": 3, machines[1]: 3}


def test_page_stands_alone(tmp_path: Path) -> None:
    _, html = written(tmp_path, planted())
    page = Lines(html)
    assert len(set(page.ids)) == len(page.ids)
    assert not re.search(r"https?:|//|@import|javascript|\bsrc=", html)
    assert set(re.findall(r'(?:href="|url\()([^")]+)', html)) <= {f"#{name}" for name in page.ids}
    assert html.count("<svg") == 2
    for text in ("best possible", "Pareto front", "narrow full table", "frequency cut", "test AUC"):
        assert f">{text}</text>" in html
    assert '<meta name="viewport"' in html
    assert "@media print" in html


def test_page_is_made_again_from_its_records(tmp_path: Path) -> None:
    folder, page = written(tmp_path, planted())
    again = write_report([folder / "records" / "Planted-data.json"], tmp_path / "again")
    assert again.read_text() == page
    assert sorted(p.name for p in folder.iterdir()) == [
        *("Planted-data-auc.png", "Planted-data-logloss.png", "index.html"),
        *("records", "results.csv", "results.json"),
    ]


def test_records_of_a_report_have_the_tables_of_one_seed(tmp_path: Path) -> None:
    records = planted()
    shown = records.runs[1].model_copy(update={"fields": {"tables": {"user": {"loss": 0.25}}}})
    runs = [shown if run is records.runs[1] else run for run in records.runs]
    folder, page = written(tmp_path, planted(runs=runs))
    kept = folder / "records" / "Planted-data.json"
    with_tables = [run for run in read_records(kept).runs if "tables" in (run.summary or {})]
    assert [(run.cell, run.seed) for run in with_tables] == [
        (run.cell, 1 if run.cell == shown.cell else 0) for run in with_tables
    ]
    looked_at = {("full", None), ("full", 0.5), ("full", 0.2), ("dnis", 0.2)}  # and the front
    assert {(run.cell["table"], run.cell.get("ratio")) for run in with_tables} == looked_at
    assert len(with_tables) == len(looked_at)
    # A run is one and the same with its tables and without, and nothing known of it is lost.
    planted(name="plain").write(tmp_path / "plain.json")
    for given in ([tmp_path / "plain.json", kept], [kept, tmp_path / "plain.json"]):
        (section,) = read_sections(given)
        together = [run for cell in section.cells for run in cell.runs.values()]
        assert all("tables" in (run.summary or {}) for run in together)
        assert [run.seed for run in together if run.fields] == [1]
    again = write_report([kept], tmp_path / "again")
    assert again.read_text() == page
    # A cell that had none to be kept can be on the front of other records: they are left out.
    cells = [run for run in read_records(kept).runs if run.cell["table"] == "hash"]
    planted(name="front", runs=cells).write(tmp_path / "front.json")
    html = write_report([tmp_path / "front.json"], tmp_path / "front").read_text()
    assert "Pareto front" in html
    assert "Fields of" not in html


def test_lines_are_data_frames_of_the_right_types(tmp_path: Path) -> None:
    folder, _ = written(tmp_path, planted())
    frames = [pd.read_csv(folder / "results.csv"), pd.read_json(folder / "results.json")]
    for frame in frames:
        assert len(frame) == 3 * len(CELLS) + 2
        assert frame.seed.dtype == np.int64
        for column in ("ratio", "test_auc", "valid_logloss", "bytes_file", "seconds_train"):
            assert frame[column].dtype == np.float64
        means = frame.fillna({"ratio": 1}).groupby(["table", "ratio"]).test_auc.mean()
        for (table, ratio), (auc, _) in CELLS.items():
            assert means[table, ratio or 1] == pytest.approx(auc)
    pd.testing.assert_frame_equal(*frames, check_dtype=False)


def test_what_was_run_is_all_there(tmp_path: Path) -> None:
    runs = [run.model_copy(update={"tuned": {"rows.lr": 0.25}}) for run in planted().runs]
    _, html = written(tmp_path, planted(runs=runs, tune={"rows.lr": [0.25, 0.5]}))
    for text in ("kind: planted", "python: '3.11'", "rows.lr: [0.25, 0.5]", "rows.lr: 0.25"):
        assert text in html.replace("&#x27;", "'")


def test_retrieval_is_compared_by_its_seeds(tmp_path: Path) -> None:
    runs = planted().runs
    for run in runs:
        if run.summary:
            auc = run.summary["test"]["auc"]
            run.summary["test"] = {"recall": auc / 4, "ndcg": auc / 8, "top_k": 20, "rows": 50}
    _, html = written(tmp_path, planted(runs=runs))
    assert Lines(html).rows[0][1:3] == ["recall@k", "NDCG@k"]
    assert "over seeds alone" in html


def test_one_seed_without_predictions_is_not_judged(tmp_path: Path) -> None:
    runs = [run for run in planted().runs if run.seed == 0]
    _, html = written(tmp_path, planted(runs=runs))
    assert "6 not judged" in html
    assert "With one seed nothing is known" in html
    assert "≈" not in "".join(" ".join(row) for row in Lines(html).rows)


def test_nothing_finished_is_a_page_of_reasons(tmp_path: Path) -> None:
    runs = [run for run in planted().runs if run.failure]
    folder, html = written(tmp_path, planted(runs=runs))
    assert "No run has finished" in html
    assert Lines(html).line("qr")[0][1].startswith("failed: ")
    assert len(pd.read_csv(folder / "results.csv")) == 2


# -- real runs -----------------------------------------------------------------------------------

OVERRIDES = {
    "full-0": (),
    "full-1": ("train.seed=6",),
    "hash-0": ("table=hash", "ratio=0.4"),
    "hash-1": ("table=hash", "ratio=0.4", "train.seed=6"),
    "wide": ("model.hidden=[4]",),
}


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    for name, overrides in OVERRIDES.items():
        train(tiny("train.epochs=1", *overrides), folder / name)
    return folder


def test_runs_are_cells_of_what_they_change(runs: Path) -> None:
    (section,) = read_sections([runs / name for name in OVERRIDES])
    assert {cell.name: sorted(cell.runs) for cell in section.cells} == {
        "full": [5, 6],
        "hash, ratio 0.4": [5, 6],
        "full, model.hidden=[4]": [5],
    }
    assert section.records.name == "frappe_x1/deepfm"


def test_test_rows_are_paired_over_seeds(runs: Path) -> None:
    (section,) = read_sections([runs / name for name in OVERRIDES])
    found = {(c.metric, c.cell.name): c.difference for c in Differences(section).compared}
    opened = {name: FinishedRun.open(runs / name) for name in OVERRIDES}
    store = opened["full-0"].store()
    scores = {name: run.scores(store, "test") for name, run in opened.items()}
    expected = AUC(store.split("test").label).compare(
        [scores["hash-0"], scores["hash-1"]], [scores["full-0"], scores["full-1"]]
    )
    difference = found["auc", "hash, ratio 0.4"]
    assert difference.value == pytest.approx(expected.value)
    assert difference.interval == pytest.approx(expected.interval)


def test_sweep_directory_is_read_wherever_its_runs_lie(runs: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for name in ("full-0", "hash-0"):
        shutil.copytree(runs / name, sweep / "deep" / "down" / name)
    records = [read_records(runs / name) for name in ("full-0", "hash-0")]
    whole = [run for one in records for run in one.runs]
    Records(
        name="s",
        recipe="frappe_x1/deepfm",
        config=records[0].config,
        axes={"table": ["full", "hash"]},
        runs=whole,
    ).write(sweep / "results.json")
    (section,) = read_sections([sweep])
    assert [len(cell.folders) for cell in section.cells] == [1, 1]
    assert Differences(section).rows_errors
    (beside,) = read_sections([sweep, runs / "full-1"])
    assert [sorted(cell.runs) for cell in beside.cells] == [[5, 6], [5]]


def test_records_without_tables_find_them_in_the_runs_at_hand(runs: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    shutil.copytree(runs / "full-1", sweep / "full-1")
    records = read_records(runs / "full-0")
    both = [run for name in ("full-0", "full-1") for run in read_records(runs / name).runs]
    axes = {"table": ["full"]}
    records.model_copy(update={"axes": axes, "runs": both}).write(sweep / "results.json")
    kept = write_report([sweep], tmp_path / "a").with_name("records")
    shutil.copy(next(kept.iterdir()), sweep / "results.json")
    thin = read_records(sweep).runs
    assert ["tables" in (run.summary or {}) for run in thin] == [True, False]
    write_report([sweep], tmp_path / "b", fields=True)
    (section,) = read_sections([sweep])
    assert section.cells[0].shown.seed == thin[1].seed
    assert Lines((tmp_path / "b" / "index.html").read_text()).line("user")[0][1] != "-"


def test_contradictions_and_strangers_are_refused(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "full-0", tmp_path / "other")
    file = tmp_path / "other" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"epoch": 7}))
    with pytest.raises(ValueError, match="two different runs of full with seed 5"):
        read_sections([runs / "full-0", tmp_path / "other"])
    assert len(read_sections([runs / "full-0", runs / "full-0"])[0].cells) == 1
    with pytest.raises(ValueError, match="neither a run nor a sweep"):
        read_sections([tmp_path])


def test_command_writes_the_page_and_measures_fields(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(runs / name) for name in ("full-0", "full-1", "hash-0", "hash-1")]
    with pytest.raises(SystemExit) as caught:
        main(["report", *given, "-o", str(tmp_path / "out"), "--fields"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "index.html")
    html = (tmp_path / "out" / "index.html").read_text()
    page = Lines(html)
    assert str(runs) not in html
    assert "300 test rows" in html
    title = [row[0] for row in page.rows].index("field")
    assert len(page.rows[title + 1]) == 9
    measured = json.loads((runs / "full-0" / "fields.json").read_text())["tables"]
    loss = measured["user"]["loss"]
    assert f"{loss:.1%}" in page.line("user", "7")[0]
    records = read_records(next((tmp_path / "out" / "records").iterdir()))
    assert records.runs[0].fields is not None
    again = write_report([tmp_path / "out" / "records" / "frappe_x1-deepfm.json"], tmp_path / "b")
    assert again.read_text() == html
