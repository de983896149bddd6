"""The order in which tables are to be tried, and what speaks for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from embtables.compressor import Table, TableConfig, parse_table
from embtables.registry import Config
from embtables.rows.optimizers import RowOptimizer
from trainer.advice.candidates import Candidate, known_tables, planned
from trainer.advice.evidence import Cell, Evidence, Outcome, Rule, Study
from trainer.advice.facts import Facts
from trainer.advice.ranking import AVERAGE, strengths

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
        leads: whether it was better than some table on these data with this model, and than none worse.
        compared: the studies that have it, those that say most first.
        rules: that hold for these data.
        command: that trains it.
    """

    candidate: Candidate
    strength: float
    leads: bool
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
        first: at most `MOST` tables of which more is known for than against: those that lead, then
            the strongest; one of those that differ in precision alone.
        baselines: others that have to be beaten.
        others: known, but weaker, or one of `first` in another precision.
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


def choose(
    tables: Sequence[Table],
    facts: Facts,
    evidence: Evidence,
    rows: RowOptimizer,
    fields: Mapping[str, TableConfig],
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
    # A table that cannot be tried speaks against none that can.
    tried = {AVERAGE, *(one.table for one in able)}
    outcomes = [o for o in _outcomes(evidence, facts) if {o.better, o.worse} <= tried]
    strength = strengths(names, outcomes)
    here = [o for study in evidence.studies if study.same for o in study.outcomes(facts)]
    leading = {one.better for one in here} - {one.worse for one in here}
    choices = sorted(
        (
            _choice(one, strength[one.table], one.table in leading, evidence, facts, words)
            for one in able
        ),
        key=lambda one: (not one.leads, -round(one.strength, 9), names.index(one.candidate.table)),
    )
    first = _one_a_method(c for c in choices if c.leads or (c.measured and c.strength > 1))[:MOST]
    if facts.whole and not refused[names[0]]:
        first = choices = [one for one in choices if one.candidate.table == names[0]]
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
        others=tuple(one for one in others if one.measured),
        unmeasured=tuple(one for one in others if not one.measured),
        refused={name: reason for name, reason in refused.items() if reason},
        sweep=_sweep(compared if len(compared) > 1 else [*compared, *others[:1]], words),
        notes=tuple(notes),
    )


def _one_a_method(choices: Iterable[Choice]) -> list[Choice]:
    """Return the choices without those that differ from an earlier one in precision alone."""
    kept: dict[tuple[Config, Config], Choice] = {}
    for choice in choices:
        table = parse_table(choice.candidate.table)
        kept.setdefault((table.sharing, table.width), choice)
    return list(kept.values())


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
        Outcome(rule.table, AVERAGE, 1.0)
        if rule.verdict == "for"
        else Outcome(AVERAGE, rule.table, 1.0)
        for rule in evidence.rules
        if rule.holds(facts)
    ]
    return [*studies, *rules]


def _choice(
    one: Candidate,
    strength: float,
    leads: bool,
    evidence: Evidence,
    facts: Facts,
    words: Sequence[str],
) -> Choice:
    compared = [
        Compared(study, study.at(facts), cell)
        for study in evidence.studies
        if study.weight(facts)
        for cell in study.at(facts)
        if cell.table == one.table
    ]
    compared.sort(key=lambda found: -found.study.weight(facts) * len(found.cells))
    rules = [r for r in evidence.rules if r.table == one.table and r.holds(facts)]
    command = _line("train", [*words, f"table={one.table}", *_exact([one])])
    return Choice(one, strength, leads, tuple(compared), tuple(rules), command)


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
