"""Advice on planted statistics and planted evidence."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embtables.compressor import Pairs, Table, TableConfig
from embtables.features import Feature, Vocabulary
from embtables.rows.optimizers import Adam
from embtables.tables import EmbeddingTables, logical_tables
from trainer.advice import Advice, Limits, advise
from trainer.advice.candidates import known_tables, planned
from trainer.advice.choice import Choice, choose
from trainer.advice.evidence import Cell, Evidence, Outcome, Rule, Study, read_evidence
from trainer.advice.facts import Facts, Rows, facts_of
from trainer.advice.ranking import AVERAGE, strengths
from trainer.advice.sweeps import _ratio
from trainer.advice.text import advice_text
from trainer.config import load_config
from trainer.overrides import parse_override
from trainer.records import FILE, Record, Records, read_records, without_paths

ROWS = Rows(train=80_000, valid=10_000, clicks=2_000)
SHIPPED = read_evidence()
BARE = SHIPPED.model_copy(update={"studies": (), "rules": ()})
FREE = Limits()
WORDS = ("recipe", "ratio=0.1")


def zipf(rows: int, exponent: float, reads: float = 1e6) -> np.ndarray:
    counts = np.arange(1, rows + 1) ** -exponent
    return np.floor(counts * reads / counts.sum()).astype(np.int64)


def tables(dim: int = 16, **counts: np.ndarray) -> list[Table]:
    features = [Feature(name, dim) for name in counts]
    known = {name: Vocabulary(len(one), counts=one) for name, one in counts.items()}
    return logical_tables(features, known)


def ask(
    some: Sequence[Table], ratio: float, evidence: Evidence = SHIPPED, limits: Limits = FREE
) -> Advice:
    budget = 1 + int(ratio * sum(4 * table.rows * table.dim for table in some))
    facts = facts_of(some, budget, ROWS)
    return choose(some, facts, evidence, Adam(lr=1e-3), {}, limits, WORDS)


def names(choices: Sequence[Any]) -> list[str]:
    return [choice.candidate.table for choice in choices]


def able(advice: Advice) -> list[Choice]:
    return [*advice.first, *advice.baselines, *advice.others, *advice.unmeasured]


def study(ratio: float = 0.1, **values: float) -> Study:
    cells = tuple(Cell(table=name, ratio=ratio, test=value) for name, value in values.items())
    return Study(source="here", about="planted", ids=1000, grade="A", cells=cells)


UNIFORM = tables(a=np.full(1000, 100), b=np.full(500, 200), c=np.full(4, 25_000))


# -- facts -----------------------------------------------------------------------------------------


def test_facts_of_two_tables_by_hand() -> None:
    some = tables(4, big=np.array([50, 30, 10, 1, 1, 0]), tiny=np.array([60, 32]))
    linear = [replace(table, name=f"{table.name}:linear", dim=1) for table in some]
    facts = facts_of([*some, *linear], budget=100, rows=ROWS)
    assert (facts.tables, facts.ids, facts.uncompressed) == (2, 8, 160)
    assert (facts.largest, facts.share, facts.dim) == ("big", 120 / 160, 4)
    # Rows of 20 bytes: five fit, the two of tiny and the three most frequent of big.
    assert facts.covered == 90 / 92
    assert facts.rare == 3 / 8
    assert facts.rare_reads == 2 / 184
    assert (facts.small, facts.small_bytes) == ((), 0)
    assert facts_of([*some, *linear], 800, ROWS).small == ("tiny",)


def test_open_tables_have_no_counts_to_speak_of() -> None:
    known = {"a": Vocabulary(1000, open=True)}
    facts = facts_of(logical_tables([Feature("a", 8)], known), 5000, ROWS)
    assert facts.open == ("a",)
    assert facts.narrow == 0
    assert (facts.covered, facts.rare, facts.rare_reads) == (None, None, None)


def test_error_of_an_auc_is_that_of_hanley_and_mcneil() -> None:
    # One positive row among many negatives: the variance of P(negative below) is Q1 - A^2.
    error = Rows(0, 10**9 + 1, 1).auc_error(0.8)
    assert error == pytest.approx((2 * 0.64 / 1.8 - 0.64) ** 0.5, rel=1e-3)
    assert Rows(0, 10, 0).auc_error(0.8) is None
    assert Rows(0, 10).auc_error(0.8) is None


# -- plans -----------------------------------------------------------------------------------------


class Paired:
    """Interactions of the tables a and b."""

    def partner(self, table: str, named: str | None = None) -> str:
        return "b" if table == "a" else "a"

    def pairs(self, left: str, right: str) -> Pairs:
        ids = np.arange(2000)
        rows = {"a": 1000, "b": 500, "c": 4}
        return Pairs(ids % rows[left], ids % rows[right], np.ones(2000))


@pytest.mark.parametrize("table", known_tables())
def test_planned_bytes_are_those_of_the_tables(table: str) -> None:
    budget, optimizer = 20_000, Adam(lr=1e-3)
    found = planned(table, UNIFORM, {}, budget, optimizer)
    known = {one.name: Vocabulary(one.rows, counts=one.counts) for one in UNIFORM}
    features = [Feature(one.name, one.dim) for one in UNIFORM]
    if found.refusal:
        with pytest.raises(ValueError, match="smallest reachable size"):
            EmbeddingTables(features, known, table=table, budget=budget)
        return
    built = EmbeddingTables(
        features, known, table=table, budget=budget, optimizer=optimizer, interactions=Paired()
    )
    assert found.least <= found.bytes <= budget
    if found.searches:
        assert found.training == pytest.approx(built.bytes().training, rel=0.02)
    else:
        assert (found.bytes, found.training) == (built.bytes().inference, built.bytes().training)


def test_every_method_has_its_place_and_none_two() -> None:
    for evidence in (SHIPPED, BARE):
        advice = ask(UNIFORM, 0.1, evidence)
        placed = [*names(able(advice)), *advice.refused]
        assert sorted(placed) == sorted(known_tables(evidence.tables))
    assert not advice.first
    assert "Nothing that is known speaks for" in advice_text(advice)
    assert set(names(advice.unmeasured)) | set(advice.refused) >= {"hash", "dnis", "int8"}


# -- planted statistics ------------------------------------------------------------------------------


def test_one_dominating_field_leaves_the_others_exact() -> None:
    some = tables(big=zipf(50_000, 0.8), small=zipf(40, 0.8), tiny=zipf(3, 0.8))
    advice = ask(some, 0.1, BARE)
    assert (advice.facts.largest, round(advice.facts.share, 2)) == ("big", 1.0)
    assert advice.facts.small == ("small", "tiny")
    by_name = {choice.candidate.table: choice for choice in advice.unmeasured}
    for table in ("hash", "multiplex"):
        words = shlex.split(by_name[table].command)
        assert words[:4] == ["embtables", "train", "recipe", "ratio=0.1"]
        assert {f"table={table}", "fields.small=full"} <= set(words)
        assert "fields.big=full" not in words
    assert "fields" not in by_name["dnis"].command


def test_skew_decides_about_cutting_rare_ids() -> None:
    cut = "frequency_cut"
    skewed = tables(a=zipf(20_000, 1.6), b=zipf(10_000, 1.6))
    advice = ask(skewed, 0.1, SHIPPED.model_copy(update={"studies": ()}))
    assert advice.facts.covered is not None
    assert advice.facts.covered > 0.95
    assert names(advice.first) == [cut]
    text = advice_text(advice)
    assert f"{advice.facts.covered:.1%} would keep rows of their own (these data)" in text
    assert f"{advice.facts.rare:.0%} of the bytes" in text

    advice = ask(UNIFORM, 0.1)
    assert advice.facts.covered is not None
    assert advice.facts.covered < 0.2
    assert cut not in names(advice.first)
    assert "against it" in advice_text(advice)


def test_open_vocabularies_leave_arithmetic_alone() -> None:
    known = {name: Vocabulary(100_000, open=True) for name in ("a", "b")}
    some = logical_tables([Feature(name, 16) for name in known], known)
    advice = ask(some, 0.05)
    assert set(names(able(advice))) == {"multiplex", "hash", "double_hash"}
    assert not advice.baselines
    assert all("open vocabulary" in r or "closed vocabulary" in r for r in advice.refused.values())
    assert "table=double_hash,multiplex" in advice.sweep  # something to compare it with


def test_a_budget_that_nothing_reaches() -> None:
    advice = ask(UNIFORM, 1e-5)
    assert not able(advice)
    assert advice.sweep == ""
    assert "smallest reachable size" in advice.refused["full"]
    assert "No table can be tried: raise the budget" in advice_text(advice)


def test_a_budget_that_holds_everything() -> None:
    advice = ask(UNIFORM, 1.0)
    assert names(advice.first) == names(able(advice)) == ["full"]
    assert "nothing needs to be compressed" in advice_text(advice)


def test_training_memory_rules_out_what_trains_whole() -> None:
    whole = 3 * sum(4 * table.rows * table.dim for table in UNIFORM)  # rows and Adam's moments
    free, bound = ask(UNIFORM, 0.1), ask(UNIFORM, 0.1, limits=Limits(training_memory=whole // 2))
    searching = {c.candidate.table for c in (*free.first, *free.others) if c.candidate.searches}
    assert searching
    assert searching <= bound.refused.keys()
    assert f"{whole:,} bytes while training" in bound.refused["dnis"]
    assert all(choice.candidate.training <= whole // 2 for choice in able(bound))
    assert "hash" in names(able(bound))


def test_latency_rules_out_what_was_measured_slower() -> None:
    advice = ask(UNIFORM, 0.1, limits=Limits(latency=1.0))
    slow = [c.table for c in SHIPPED.speed.cells if c.dim == 16 and c.times > 1]
    assert slow
    for table in slow:
        assert SHIPPED.speed.source in advice.refused[table]
    assert "look-ups are not measured yet" in advice_text(advice)


def test_costs_of_a_search_are_those_of_all_studies() -> None:
    def told(*costs: float | None) -> str:
        studies = tuple(
            Study(
                source=f"s{number}",
                about="planted",
                ids=1000,
                grade="A",
                cells=(
                    Cell(table="dnis", ratio=0.1, test=0.8, cost=cost),
                    Cell(table="full", ratio=0.1, test=0.7),
                ),
            )
            for number, cost in enumerate(costs)
        )
        evidence = BARE.model_copy(update={"studies": studies})
        return " ".join(advice_text(ask(UNIFORM, 0.1, evidence)).split())

    text = "it searches in stages: {} times the rows that the full table's training read ({})"
    assert text.format("2 to 6", "s0, s1") in told(2, 6)
    assert text.format("6", "s0, s1") in told(6, 6)
    assert "its cost is not measured yet" in told(None)


# -- evidence ----------------------------------------------------------------------------------------


def facts(ratio: float = 0.1, ids: int = 1000, narrow: int = 3, clicks: int | None = 1) -> Facts:
    whole = 10**6
    found = facts_of(UNIFORM, int(ratio * whole), replace(ROWS, clicks=clicks))
    return replace(found, uncompressed=whole, ids=ids, narrow=narrow)


def test_strengths_are_those_of_bradley_and_terry() -> None:
    found = strengths(["a", "b", "c"], [Outcome("a", "b", 1.0), Outcome("b", "c", 1.0)])
    assert found["a"] > found["b"] > found["c"]
    assert found["b"] == pytest.approx(1)
    assert found["a"] * found["c"] == pytest.approx(1)
    # A point: p wins 1.5 of 2 against 1, so p / (p + 1) = 3/4.
    found = strengths(["a", "b", "c"], [Outcome("a", AVERAGE, 1.0), Outcome(AVERAGE, "b", 1.0)])
    assert found == pytest.approx({"a": 3, "b": 1 / 3, "c": 1})


def test_a_study_speaks_at_budgets_near_its_own() -> None:
    one = study(0.1, hash=0.7, full=0.8)
    assert one.weight(facts(0.1)) == 1
    assert one.outcomes(facts(0.2))[0][:2] == ("full", "hash")
    assert one.weight(facts(0.1)) > one.weight(facts(0.2)) > one.weight(facts(0.3)) > 0
    assert one.weight(facts(0.1, ids=10_000)) == pytest.approx(0.5)
    for other in (facts(0.01), facts(0.5), facts(0.1, clicks=None)):
        assert not one.outcomes(other)
    both = one.model_copy(update={"cells": (*one.cells, *study(0.02, hash=0.5, full=0.6).cells)})
    assert {cell.ratio for cell in both.at(facts(0.03))} == {0.02}


def test_many_tables_of_one_study_speak_as_often_as_they_are_facts() -> None:
    one = study(hash=0.5, qr=0.6, mde=0.7, full=0.8)
    assert len(one.outcomes(facts())) == 6
    assert sum(outcome.weight for outcome in one.outcomes(facts())) == pytest.approx(3)


def test_long_lists_name_the_first_and_count_the_rest() -> None:
    many = study(full=0.9, qr=0.8, mde=0.7, hash=0.6, dnis=0.5, pep=0.4, int8=0.3, fp16=0.2)
    advice = ask(UNIFORM, 0.1, BARE.model_copy(update={"studies": (many,)}))
    text = " ".join(advice_text(advice).split())
    assert "better than qr, mde, hash, dnis, pep, int8 and 1 more: auc" in text


def test_noise_is_not_a_win() -> None:
    one = study(hash=0.70, full=0.71)
    assert len(one.outcomes(facts())) == 1
    assert not one.model_copy(update={"noise": 0.02}).outcomes(facts())
    spread = [cell.model_copy(update={"std": 0.01, "seeds": 2}) for cell in one.cells]
    assert not one.model_copy(update={"cells": tuple(spread)}).outcomes(facts())
    # A single seed is no better known than one of several: .0071 and .01 are the standard errors.
    for apart, told in ((0.024, 0), (0.025, 1)):
        cells = spread[0], Cell(table="full", ratio=spread[0].ratio, test=0.70 + apart)
        assert len(one.model_copy(update={"cells": cells}).outcomes(facts())) == told
    assert one.model_copy(update={"metric": "logloss"}).outcomes(facts())[0].better == "hash"


def test_rows_of_one_number_stand_for_themselves() -> None:
    one = study(hash=0.7, full=0.6)
    cells = (one.cells[0], one.cells[1].model_copy(update={"width": 1}))
    cut = one.model_copy(update={"cells": cells})
    assert not cut.outcomes(facts(narrow=3))
    assert cut.outcomes(facts(narrow=1))
    assert cut.outcomes(facts(narrow=0))


def test_the_same_data_outweigh_others_and_validation_chooses() -> None:
    others = [study(hash=0.7, qr=0.8) for _ in range(3)]
    cells = (
        Cell(table="hash", ratio=0.1, valid=0.8, test=0.7),
        Cell(table="qr", ratio=0.1, valid=0.7, test=0.8),
    )
    own = study(hash=0, qr=0).model_copy(update={"cells": cells, "same": True})
    evidence = BARE.model_copy(update={"studies": (*others, own)})
    some = tables(a=np.full(50_000, 3), b=np.full(20_000, 3))
    assert names(ask(some, 0.1, evidence).first)[0] == "hash"
    assert names(ask(some, 0.1, BARE.model_copy(update={"studies": others})).first)[0] == "qr"


def test_one_precision_of_a_method_is_proposed() -> None:
    values = {"qr+int8": 0.84, "qr+fp16": 0.83, "hash": 0.82, "qr": 0.81, "int8": 0.8, "fp16": 0.79}
    advice = ask(UNIFORM, 0.1, BARE.model_copy(update={"studies": (study(**values),)}))
    assert names(advice.first) == ["qr+int8", "hash"]
    assert names(advice.others)[:2] == ["qr+fp16", "qr"]


def test_a_rule_holds_where_its_numbers_do() -> None:
    rule = Rule.model_validate(
        {
            "table": "int8",
            "verdict": "for",
            "when": {"ratio": {"least": 0.2}, "rare": {"most": 0.5}},
            "says": "{ratio:.0%} of {dim}",
            "source": "x",
        }
    )
    assert rule.holds(facts(0.25))
    assert rule.text(facts(0.25)) == "25% of 16 (x)"
    assert not rule.holds(facts(0.1))
    assert not rule.holds(replace(facts(0.25), rare=None))


# -- recipes and sweeps --------------------------------------------------------------------------------


@pytest.fixture
def given(raw: Path) -> tuple[str, list[str]]:
    return str(raw / "tiny.yaml"), [f"data.root={raw}", f"data.store={raw / 'prepared'}"]


def written(folder: Path, given: tuple[str, list[str]], *overrides: str, **valid: float) -> Path:
    """Write the records of a sweep that has found validation AUCs, each on two seeds."""
    loaded = load_config(given[0], [*given[1], *overrides])
    size = {"uncompressed": 1000, "file": 500}
    runs = [
        Record(
            cell={"table": table, "ratio": 0.5},
            seed=seed,
            summary={
                "table": table,
                "budget": None,
                "ratio": 0.5,
                "bytes": size,
                "valid": {"auc": auc + 0.001 * seed},
                "test": {"auc": auc},
                "stages": [{"rows": 1000}],
            },
        )
        for table, auc in valid.items()
        for seed in (0, 1)
    ]
    runs.append(Record(cell={"table": "qr", "ratio": 0.5}, seed=0, failure="out of memory"))
    records = Records(
        name="found", recipe=loaded.name, config=without_paths(loaded.config.plain()), runs=runs
    )
    folder.mkdir(parents=True)
    records.write(folder / FILE)
    return folder


def test_sweeps_at_hand_come_first(given: tuple[str, list[str]], tmp_path: Path) -> None:
    written(tmp_path / "sweeps" / "one", given, hash=0.9, full=0.8, multiplex=0.7)
    advice = advise(*given, ratio=0.5, below=tmp_path / "sweeps")
    assert names(advice.first)[0] == "hash"
    text = " ".join(advice_text(advice).split())
    assert "better than full (narrow), multiplex: auc at ratio 0.5, hash .9000 ± .0000" in text
    assert f"{tmp_path}/sweeps/one: tiny, these data, 2 seeds)" in text
    assert not advice.notes
    records = read_records(tmp_path / "sweeps" / "one")
    first = records.runs[0]
    unknown = [
        first.model_copy(
            update={
                "cell": {"table": table},
                "summary": {**(first.summary or {}), "table": table, "test": test},
            }
        )
        for table, test in (("qr", {"auc": None}), ("mde", {"logloss": 0.5}))
    ]
    records.model_copy(update={"runs": [*records.runs, *unknown]}).write(
        tmp_path / "sweeps" / "one" / FILE
    )
    assert advice_text(advise(*given, ratio=0.5, below=tmp_path / "sweeps")) == advice_text(advice)
    nothing = advise(*given, ratio=0.5, below=tmp_path / "none")
    assert all(one.study.same is False for c in nothing.first for one in c.compared)


def test_a_sweep_of_other_training_is_left_out_unless_it_is_given(
    given: tuple[str, list[str]], tmp_path: Path
) -> None:
    folder = written(tmp_path / "sweeps" / "one", given, "train.epochs=9", hash=0.9, full=0.8)
    advice = advise(*given, ratio=0.5, below=tmp_path / "sweeps")
    assert "train.epochs: 9 -> 3" in advice.notes[0]
    assert "left out" in advice_text(advice)
    for path in (folder, folder / FILE):
        advice = advise(*given, ratio=0.5, sweeps=[path], below=tmp_path / "sweeps")
        assert (names(advice.first)[0], advice.notes) == ("hash", ())


def test_a_sweep_of_another_model_is_refused(given: tuple[str, list[str]], tmp_path: Path) -> None:
    folder = written(tmp_path / "one", given, "model.dim=8", hash=0.9, full=0.8)
    with pytest.raises(ValueError, match=r"another model\n  model\.dim: 8 -> 4"):
        advise(*given, ratio=0.5, sweeps=[folder])


def test_advice_is_repeatable_and_its_commands_are_valid(
    given: tuple[str, list[str]], tmp_path: Path
) -> None:
    one, other = (advise(*given, budget="1kB", below=tmp_path) for _ in range(2))
    assert advice_text(one) == advice_text(other)
    assert (one.facts.budget, one.facts.rows.train) == (1000, 600)
    assert able(one)
    for choice in able(one):
        program, verb, recipe, *overrides = shlex.split(choice.command)
        assert (program, verb) == ("embtables", "train")
        config = load_config(recipe, overrides).config
        assert (str(config.table), config.budget) == (choice.candidate.table, 1000)
        assert all(table == TableConfig() for table in config.fields.values())
    words = shlex.split(one.sweep)
    assert words[:3] == ["embtables", "sweep", given[0]]
    over = parse_override(words[words.index("--over") + 1])
    assert over == (("table",), ",".join(names((*one.first, *one.baselines))))


def test_shipped_evidence_speaks_for_its_own_recipe_as_it_is() -> None:
    own = [study.recipe for study in SHIPPED.studies if study.recipe]
    assert own
    for recipe in own:
        assert load_config(recipe, ["data.root=/data"]).name == recipe


def test_sizes_of_large_tables_are_told_apart() -> None:
    size = {"uncompressed": 10**11}
    shares = [_ratio({"budget": b, "bytes": size}) for b in (10**6, 2 * 10**6, 10**10 + 1)]
    assert shares == [1e-5, 2e-5, 0.1]


def test_bad_asking_is_told(given: tuple[str, list[str]], tmp_path: Path) -> None:
    recipe, overrides = given
    for more, asked, message in [
        ([], {}, "neither was given"),
        ([], {"budget": "1MB", "ratio": 0.1}, "one of the two"),
        ([], {"budget": "1XB"}, "not a size in bytes"),
        ([], {"ratio": 0.0}, "above 0 and at most 1"),
        ([], {"ratio": 2.0}, "above 0 and at most 1"),
        (["table=hash"], {"ratio": 0.1}, "what advice is about"),
        (["fields.item_ids=hash"], {"ratio": 0.1}, "fields.item_ids: no such table"),
        (["modle.dim=3"], {"ratio": 0.1}, 'Did you mean "model"'),
        ([], {"ratio": 0.1, "sweeps": [tmp_path]}, "neither a run nor a sweep"),
    ]:
        with pytest.raises(ValueError, match=message):
            advise(recipe, [*overrides, *more], **asked)
    with pytest.raises(ValueError, match='Did you mean "frappe_x1/deepfm"'):
        advise("frappe_x1/deepmf", ratio=0.1)
