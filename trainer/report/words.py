"""What the differences of a section mean, in sentences (HTML)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trainer.report.differences import LEVEL, Compared, Differences
from trainer.report.sections import METRICS, Section
from trainer.report.texts import bytes_text, signed

BASELINES = {
    "full": "the full table",
    "narrow": "the narrow full table (fewer numbers a row) next below in bytes",
}
LONG = 15
"""Cells from which on a list of them is folded."""

HOW = {
    "auc": "DeLong's test",
    "logloss": "the paired losses",
    "gauc": "the AUCs of the groups",
}


def statement(section: Section, differences: Differences) -> str:
    """Return what can be said of the first metric, and how it was found."""
    if not section.metrics:
        return "<p>No run has finished, so there is nothing to compare.</p>"
    metric = section.metrics[0]
    parts = []
    for baseline, title in BASELINES.items():
        some = [c for c in differences.compared if (c.metric, c.baseline) == (metric, baseline)]
        if some:
            parts.append(_against(title, metric, some))
    if not parts:
        parts.append(
            "<p>There is no full table, uncompressed or narrow, to compare with: "
            "add <code>table=full</code>, with and without a ratio.</p>"
        )
    return "".join(parts) + _how(section, differences)


def _against(title: str, metric: str, some: Sequence[Compared]) -> str:
    verdicts = []
    for verdict in ("better", "not told apart", "worse", "not judged"):
        mine = [one for one in some if one.verdict == verdict]
        if mine:
            head, named = f"<b>{len(mine)} {verdict}</b>", _named(mine)
            text = f"{head}: {named}"
            if len(mine) > LONG:
                text = f"<details><summary>{head}</summary>{named}</details>"
            verdicts.append(f"<li>{text}</li>")
    return (
        f"<p>Test {METRICS[metric]} against <b>{title}</b>, {_count(len(some), 'cell')}:</p>"
        f"<ul>{''.join(verdicts)}</ul>"
    )


def _named(some: Sequence[Compared]) -> str:
    """Return the differences by method: each with its size."""
    methods: dict[str, list[str]] = {}
    for one in some:
        size = f" ({escape(one.cell.size)})" if one.cell.size else ""
        text = f'<span class="together">{signed(one.difference.value)}{size}</span>'
        methods.setdefault(one.cell.method, []).append(text)
    return "; ".join(
        f"<code>{escape(method)}</code> {', '.join(texts)}" for method, texts in methods.items()
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _how(section: Section, differences: Differences) -> str:
    seeds = sorted({one.difference.seeds for one in differences.compared}) or [0]
    fewest = f"{seeds[0]} to " if len(seeds) > 1 else ""
    parts = [
        "Each number is the mean difference over runs with the same seeds "
        f"({fewest}{_count(seeds[-1], 'seed')}). A difference is called one if its p-value, "
        f"Holm-adjusted over the cells of the list, is below {LEVEL}."
    ]
    known = sum(one.difference.rows_error is not None for one in differences.compared)
    if known:
        ways = ", ".join(f"{METRICS[m]} by {HOW[m]}" for m in section.metrics if m in HOW)
        rows = f"{section.done[0].mean('test', 'rows'):,.0f} test rows"
        drawn = ", drawn in the groups of GAUC" if "gauc" in section.metrics else ""
        some = "" if known == len(differences.compared) else f" (in {known} comparisons)"
        parts.append(
            f"Its error joins, as the root of the sum of squares, that over the {rows}{drawn} "
            f"({ways}){some} and that over seeds (Student's t, Satterthwaite's degrees of freedom). "
            "Where the predictions of a part of the seeds were at hand, that over rows is theirs, which "
            "is rather too large."
        )
    else:
        parts.append(
            "Its error is that over seeds alone (Student's t), which does not say what other test rows "
            f"would have given: {escape(differences.missing or 'the runs are not at hand')}."
        )
    if seeds == [1]:
        parts.append("<b>With one seed nothing is known of what another training would give.</b>")
    return f'<p class="note">{" ".join(parts)}</p>'


def front_words(section: Section) -> str:
    """Return which cells are on the Pareto front of the first metric."""
    if not section.metrics:
        return ""
    metric = section.metrics[0]
    cells = [
        f"<code>{escape(cell.method)}</code> {bytes_text(cell.bytes)}, {cell.mean('test', metric):.4f}"
        for cell in section.front(metric)
    ]
    return f"<p>Pareto front of {METRICS[metric]}: {'; '.join(cells)}.</p>"
