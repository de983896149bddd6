"""Which tables to try first under a budget, and why: `embtables advise`.

Facts of the data (`facts`) and what the engine plans under the budget (`candidates`) say what can be
tried; measurements (`evidence`, `sweeps`) say in which order (`ranking`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.store import Store
from embtables.budget import byte_budget, parse_bytes
from embtables.compressor import Table, TableConfig
from embtables.rows.optimizers import RowOptimizer
from embtables.tables import logical_tables
from models.base import models
from trainer.advice.candidates import Candidate, known_tables, planned
from trainer.advice.evidence import Cell, Evidence, Outcome, Rule, Study, read_evidence, with_same
from trainer.advice.facts import Facts, Rows, facts_of
from trainer.advice.ranking import AVERAGE, strengths
from trainer.advice.sweeps import sweeps_at_hand
from trainer.config import RunConfig, load_config
from trainer.datasets import model_inputs, open_store, vocabularies

MOST = 3
"""Tables to try."""


@dataclass(frozen=True)
class Limits:
    """What tables may take.

    Attributes:
        training_memory: bytes of tables, optimizer state, maps and projections while training.
        latency: times the look-ups of a full table of the model's width, when packed.
    """

    training_memory: int | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Compared:
    """A table among others of a study.

    Attributes:
        study: where.
        cells: all tables at the budget nearest to the one asked for, the best first.
        cell: the table's own.
    """

    study: Study
    cells: tuple[Cell, ...]
    cell: Cell


@dataclass(frozen=True)
class Choice:
    """A table that can be tried, and what is known of it.

    Attributes:
        candidate: what the engine plans.
        strength: above 1, more speaks for it than against it.
        compared: the studies that have it, those that say most first.
        rules: that hold for these data.
        command: that trains it.
    """

    candidate: Candidate
    strength: float
    compared: tuple[Compared, ...]
    rules: tuple[Rule, ...]
    command: str

    @property
    def measured(self) -> bool:
        """Whether anything is known of it."""
        return bool(self.compared or self.rules)


@dataclass(frozen=True)
class Advice:
    """What to try, and why.

    Attributes:
        recipe: whose data and model.
        facts: of the data and the budget.
        limits: what tables may take besides.
        evidence: that was asked.
        first: at most `MOST` tables of which more is known for than against, the strongest first.
        baselines: others that have to be beaten.
        others: known, but weaker.
        unmeasured: tables of which nothing is known, by name.
        refused: table -> why it cannot be tried.
        sweep: command that compares `first` and `baselines`, or one of them with the next table.
        notes: sweeps that were left out.
    """

    recipe: str
    facts: Facts
    limits: Limits
    evidence: Evidence
    first: tuple[Choice, ...]
    baselines: tuple[Choice, ...]
    others: tuple[Choice, ...]
    unmeasured: tuple[Choice, ...]
    refused: dict[str, str]
    sweep: str
    notes: tuple[str, ...]


def advise(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    budget: int | str | None = None,
    ratio: float | None = None,
    limits: Limits | None = None,
    sweeps: Iterable[Path] = (),
    below: Path = Path("sweeps"),
) -> Advice:
    """Return which tables to try for a recipe under a budget.

    The data set is prepared if it is not yet. Nothing is trained, and nothing of the validation and
    test rows is read but how many they are.

    Args:
        recipe: name of a recipe, or path of a YAML file; its own table and size are not looked at.
        overrides: ``key=value`` texts laid over it.
        budget: bytes of all tables when packed, such as ``"10MB"``.
        ratio: the same as a share of the uncompressed bytes. One of the two is needed.
        limits: what tables may take besides.
        sweeps: sweeps of the same data and model, wherever they are.
        below: folder in which sweeps of the recipe are found.

    Raises:
        ValueError: both or none of budget and ratio, a bad size, an unknown recipe or key, or a sweep
            that cannot be used.
    """
    if (budget is None) == (ratio is None):
        given = "both" if ratio is not None else "neither was given"
        raise ValueError(f"give --budget 10MB or --ratio 0.1, one of the two ({given})")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"--ratio must be above 0 and at most 1, got {ratio:g}")
    size = None if budget is None else parse_bytes(budget)
    kept = [
        text for text in overrides if text.partition("=")[0] not in ("table", "budget", "ratio")
    ]
    if len(kept) < len(overrides):
        raise ValueError(
            "table, budget and ratio are what advice is about: give --budget or --ratio"
        )
    loaded = load_config(recipe, kept)
    config = loaded.config
    store = open_store(config)
    tables = tables_of(config, store)
    size = byte_budget(tables, size, ratio)
    assert size is not None
    rows = rows_of(config, store)
    facts = facts_of(tables, size, rows)
    changed = {keys[0] for keys in loaded.overridden if keys[-1] not in ("root", "store")}
    shipped = read_evidence()
    known = with_same(shipped.studies, "" if changed & {"data", "model"} else loaded.name)
    found, notes = sweeps_at_hand(config, loaded.name, facts.ids, rows, sweeps, Path(below))
    evidence = shipped.model_copy(update={"studies": (*found, *known)})
    where = f"ratio={ratio:g}" if budget is None else f"budget={budget}"
    words = (recipe, *kept, where)
    return choose(
        tables, facts, evidence, config.rows, config.fields, limits or Limits(), words, notes
    )


def tables_of(config: RunConfig, store: Store) -> list[Table]:
    """Return the logical tables of a run."""
    features = models.get(config.model.kind).embeddings(config.model, model_inputs(store))
    return logical_tables(features, vocabularies(store, features))


def rows_of(config: RunConfig, store: Store) -> Rows:
    """Return the rows of a run's data."""
    valid = store.stats["splits"]["valid"]
    clicks = (
        round(valid["rows"] * (valid["label_mean"] or 0)) if config.train.loss == "bce" else None
    )
    return Rows(store.schema.rows["train"], valid["rows"], clicks)


def choose(
    tables: Sequence[Table],
    facts: Facts,
    evidence: Evidence,
    rows: RowOptimizer,
    fields: dict[str, TableConfig],
    limits: Limits,
    words: Sequence[str],
    notes: Sequence[str] = (),
) -> Advice:
    """Return which tables to try.

    Args:
        tables: logical tables of the model.
        facts: of them and the budget.
        evidence: what is known.
        rows: row optimizer.
        fields: what some tables are made of whatever the others are.
        limits: what tables may take.
        words: of the command line: recipe, overrides and size.
        notes: to pass on.
    """
    small = [name for name in facts.small if name not in fields]
    names = known_tables(evidence.tables)
    planneds = [planned(n, tables, fields, facts.budget, rows, small) for n in names]
    refused = {one.table: _refusal(one, evidence, facts, limits) for one in planneds}
    able = [one for one in planneds if not refused[one.table]]
    strength = strengths(names, _outcomes(evidence, facts))
    choices = sorted(
        (_choice(one, strength[one.table], evidence, facts, words) for one in able),
        key=lambda choice: (-round(choice.strength, 9), names.index(choice.candidate.table)),
    )
    known = [choice for choice in choices if choice.measured]
    first = [choice for choice in known if choice.strength > 1][:MOST]
    if facts.whole and not refused[names[0]]:
        first = choices = known = [one for one in choices if one.candidate.table == names[0]]
    rest = [choice for choice in choices if choice not in first]
    baselines = [choice for choice in rest if choice.candidate.table in evidence.baselines]
    others = sorted((one for one in rest if one not in baselines), key=lambda one: not one.measured)
    compared = [*first, *baselines]
    return Advice(
        recipe=words[0],
        facts=facts,
        limits=limits,
        evidence=evidence,
        first=tuple(first),
        baselines=tuple(baselines),
        others=tuple(one for one in known if one not in (*first, *baselines)),
        unmeasured=tuple(
            one for one in choices if not one.measured and one not in (*first, *baselines)
        ),
        refused={name: reason for name, reason in refused.items() if reason},
        sweep=_sweep(compared if len(compared) > 1 else [*compared, *others[:1]], words),
        notes=tuple(notes),
    )


def _refusal(one: Candidate, evidence: Evidence, facts: Facts, limits: Limits) -> str:
    """Return why a table cannot be tried, or an empty string."""
    if one.refusal:
        return one.refusal
    most = limits.training_memory
    if most is not None and one.training > most:
        return f"takes {one.training:,} bytes while training, more than {most:,}"
    speed = evidence.speed.of(one.table, facts.dim)
    if limits.latency is not None and speed is not None and speed.times > limits.latency:
        return f"look-ups take {speed} ({evidence.speed.source}), more than {limits.latency:g}"
    return ""


def _outcomes(evidence: Evidence, facts: Facts) -> list[Outcome]:
    """Return all comparisons; a rule is one with the average table."""
    studies = [outcome for study in evidence.studies for outcome in study.outcomes(facts)]
    rules = [
        Outcome(rule.table, AVERAGE, float(rule.verdict == "for"), 1.0)
        for rule in evidence.rules
        if rule.holds(facts)
    ]
    return [*studies, *rules]


def _choice(
    one: Candidate, strength: float, evidence: Evidence, facts: Facts, words: Sequence[str]
) -> Choice:
    studies = sorted(evidence.studies, key=lambda study: -study.weight(facts))
    compared = [
        Compared(study, study.at(facts), cell)
        for study in studies
        if study.weight(facts)
        for cell in study.at(facts)
        if cell.table == one.table
    ]
    rules = [r for r in evidence.rules if r.table == one.table and r.holds(facts)]
    command = _line("train", [*words, f"table={one.table}", *_exact([one])])
    return Choice(one, strength, tuple(compared), tuple(rules), command)


def _sweep(choices: Sequence[Choice], words: Sequence[str]) -> str:
    """Return the command that compares tables, or nothing where there is one or none."""
    tables = [choice.candidate.table for choice in choices]
    if len(tables) < 2:
        return ""
    exact = _exact([choice.candidate for choice in choices])
    return _line("sweep", [*words, *exact, "--over", f"table={','.join(tables)}", "--seeds", "3"])


def _exact(candidates: Iterable[Candidate]) -> list[str]:
    names = dict.fromkeys(name for one in candidates for name in one.exact)
    return [f"fields.{name}={TableConfig()}" for name in names]


def _line(verb: str, words: Iterable[str]) -> str:
    return shlex.join(["embtables", verb, *words])
