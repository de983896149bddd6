"""Advice on the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from embtables.compressor import TableConfig
from trainer.advice.choice import Advice, Choice, Compared
from trainer.advice.facts import Facts

WIDTH = 110
_STUDIES = 2
"""Studies that are quoted for a table."""
_CELLS = 4
"""Tables of a study that are quoted."""
_NAMES = 6
"""Tables that are named where a table is better or worse than them."""
_NARROW = str(TableConfig())
"""The full table, which a budget makes narrower."""


def advice_text(advice: Advice) -> str:
    """Return advice as lines for people."""
    lines = [
        *_facts(advice.facts),
        *(f"note      {note}" for note in advice.notes),
        "",
        *_first(advice),
    ]
    if advice.baselines:
        lines += ["", "To be beaten by whatever is tried"]
        lines += [line for choice in advice.baselines for line in _choice(advice, choice)]
    if advice.sweep:
        lines += ["", "Compare them on three seeds each", f"  {advice.sweep}"]
    return "\n".join([*lines, *_rest(advice)])


def _facts(facts: Facts) -> Iterator[str]:
    rows, error = facts.rows, facts.rows.auc_error(0.8)
    narrow = f"; if only the width is cut, {facts.narrow} of {facts.dim} numbers a row are left"
    yield (
        f"budget    {facts.budget:,} bytes of {facts.uncompressed:,} ({facts.ratio:.2%})"
        f"{narrow if 0 < facts.narrow < facts.dim else ''}"
    )
    yield (
        f"tables    {facts.tables} with {facts.ids:,} ids; {facts.largest} has {facts.share:.1%} of the "
        "bytes"
    )
    if facts.open:
        names = "all" if len(facts.open) == facts.tables else ", ".join(facts.open)
        yield f"open      {names}: any id may come"
    if facts.covered is not None:
        yield (
            f"skew      {facts.covered:.1%} of the reads of {facts.largest} are of ids frequent enough "
            "to keep rows of full width"
        )
    if facts.rare is not None and facts.rare_reads is not None:
        yield (
            f"rare      rows that training reads at most once take {facts.rare:.1%} of the bytes and "
            f"{facts.rare_reads:.1%} of the reads"
        )
    if facts.small:
        yield (
            f"small     {', '.join(facts.small)}: {facts.small_bytes:,} bytes uncompressed, "
            f"{facts.small_bytes / facts.budget:.1%} of the budget; exact where ids would share rows"
        )
    chance = "" if error is None else f" (standard error of an AUC of .8: {_number(error)})"
    yield f"rows      {rows.train:,} to train on, {rows.valid:,} to choose on{chance}"


def _first(advice: Advice) -> Iterator[str]:
    facts = advice.facts
    if facts.whole and advice.first:
        yield "The full table fits the budget: nothing needs to be compressed"
    elif advice.first:
        yield "Try, in this order" if len(advice.first) > 1 else "Try"
    elif advice.baselines or advice.others or advice.unmeasured:
        yield "Nothing that is known speaks for one of the tables that can be tried"
    else:
        yield "No table can be tried: raise the budget or the limits (reasons below)"
    for place, choice in enumerate(advice.first, 1):
        yield from _choice(advice, choice, place)


def _choice(advice: Advice, choice: Choice, place: int | None = None) -> Iterator[str]:
    one, facts = choice.candidate, advice.facts
    head = f"{place}  " if place else "-  "
    yield (
        f"{head}{_name(one.table)}: {one.bytes:,} bytes ({one.bytes / facts.uncompressed:.2%}), "
        f"{one.training:,} while training; it can go down to {one.least / facts.uncompressed:.2%}"
    )
    for reason in _reasons(advice, choice, _STUDIES if place else 1):
        yield from textwrap.wrap(
            reason, WIDTH, initial_indent="   * ", subsequent_indent="     ", break_on_hyphens=False
        )
    yield f"   {choice.command}"


def _reasons(advice: Advice, choice: Choice, studies: int) -> Iterator[str]:
    """Yield what speaks for or against a table, with its source."""
    if advice.facts.whole:
        return
    same = [compared for compared in choice.compared if compared.study.same]
    quoted = (same or choice.compared)[:studies]
    yield from (_figures(compared, advice.evidence.baselines) for compared in quoted)
    more = len(choice.compared) - len(quoted)
    if more:
        yield f"{more} more stud{'ies say' if more > 1 else 'y says'} less"
    for rule in choice.rules:
        yield f"{rule.verdict} it: {rule.text(advice.facts)}"
    if choice.candidate.searches:
        yield f"it searches in stages: {_cost(choice)}"
    if advice.limits.latency is not None:
        yield _speed(advice, choice)
    if not choice.measured:
        yield "not measured yet"


def _figures(compared: Compared, baselines: Sequence[str]) -> str:
    """Return how a table stands among those of a study, and the figures of some of them."""
    study, cells, mine = compared.study, compared.cells, compared.cell
    others = [cell for cell in cells if cell is not mine]
    verdicts = [
        f"{verdict} {_listed(names)}"
        for score, verdict in ((1, "better than"), (0.5, "not told apart from"), (0, "worse than"))
        if (names := [_name(cell.table) for cell in others if study.told(mine, cell) == score])
    ]
    wanted = [cell for cell in cells if cell is mine or cell.table in baselines]
    wanted += [cell for cell in cells if cell not in wanted][: max(0, _CELLS - len(wanted))]
    figures = [
        f"{_name(cell.table)} {_number(cell.test)}"
        + (f" ± {_number(cell.std)}" if cell.std is not None else "")
        for cell in cells
        if cell in wanted
    ]
    if study.whole is not None:
        figures.append(f"uncompressed {_number(study.whole)}")
    return (
        f"{'; '.join(verdicts)}: {study.metric} at ratio {mine.ratio:g}, {', '.join(figures)} "
        f"({study.source}: {study.about})"
    )


def _cost(choice: Choice) -> str:
    costs = [(c.cell.cost, c.study.source) for c in choice.compared if c.cell.cost is not None]
    if not costs:
        return "its cost is not measured yet"
    least, most = min(costs)[0], max(costs)[0]
    times = f"{least:g}" if least == most else f"{least:g} to {most:g}"
    sources = ", ".join(dict.fromkeys(source for _, source in costs))
    return f"{times} times the rows that the full table's training read ({sources})"


def _speed(advice: Advice, choice: Choice) -> str:
    speed = advice.evidence.speed.of(choice.candidate.table, advice.facts.dim)
    if speed is None:
        return "its look-ups are not measured yet"
    return f"look-ups take {speed} ({advice.evidence.speed.source})"


def _rest(advice: Advice) -> Iterator[str]:
    """Yield what else there is, a line each."""
    unmeasured = [_name(choice.candidate.table) for choice in advice.unmeasured]
    others = [_name(choice.candidate.table) for choice in advice.others]
    if others:
        yield from ("", f"After these           {', '.join(others)}")
    if unmeasured:
        yield from ("", f"Not measured yet      {', '.join(unmeasured)}")
    if advice.refused:
        yield from ("", "Ruled out")
        size = max(map(len, map(_name, advice.refused)))
        for table, reason in advice.refused.items():
            yield f"  {_name(table):{size}}  {reason.partition('. ')[0].partition('; ')[0]}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def _name(table: str) -> str:
    return f"{table} (narrow)" if table == _NARROW else table


def _number(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")
