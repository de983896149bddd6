"""The table of cases: add one row here with a new method, and every check runs on it.

A row holds the forms of a method to test, options that must be refused, and the checks that are
expected to fail, each with the reason. A check that fails without being declared is an error, and so
is a declared one that passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product

import numpy as np

from embtables.compressor import Table, parse_table, sharings, widths

Failures = Mapping[str, str]
"""Check (a test function without ``test_``) -> why it is expected to fail."""


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        forms: factory strings to test, the bare kind first, with the expected failures of each.
        refused: option -> a factory string that gives it a value out of range.
        takes_open: a sharing that takes open vocabularies.
    """

    forms: Mapping[str, Failures]
    refused: Mapping[str, str] = field(default_factory=dict)
    takes_open: bool = True


_ASKED = "the size is fixed by an option, so a larger budget does not undo it"
_HELD = {"finite_differences": "rows held in few bits take no gradient, only a row optimizer"}
_FOUND: Failures = {
    "enough_rows_is_exact": "widths are those of the largest worth, which need not be the largest"
}

SHARINGS = {
    "full": Method({"full": {}}, {"rows": "full(rows=3)"}, takes_open=False),
    "hash": Method(
        {"hash": {}, "hash(exact_rows=0)": {"enough_rows_is_exact": _ASKED}},
        {"exact_rows": "hash(exact_rows=-1)"},
    ),
    "double_hash": Method(
        {"double_hash": {}, "double_hash(combine=concat)": {}},
        {"exact_rows": "double_hash(exact_rows=-1)", "combine": "double_hash(combine=mean)"},
    ),
    "qr": Method(
        {
            "qr": {},
            "qr(combine=sum)": {},
            "qr(combine=concat)": {},
            "qr(collisions=5)": {"enough_rows_is_exact": _ASKED},
        },
        {"collisions": "qr(collisions=1)", "combine": "qr(combine=max)"},
        takes_open=False,
    ),
    "graphhash": Method(
        {"graphhash": {}, "graphhash(against=tag, weighted=false, positives=true)": {}},
        {
            "against": "graphhash(against='')",
            "weighted": "graphhash(weighted=maybe)",
            "positives": "graphhash(positives=maybe)",
        },
        takes_open=False,
    ),
    "double_graphhash": Method(
        {"double_graphhash": {}},
        {"against": "double_graphhash(against='')"},
        takes_open=False,
    ),
    "frequency": Method(
        {"frequency": {}, "frequency(private=0.2)": {}},
        {"private": "frequency(private=1)"},
        takes_open=False,
    ),
    "double_frequency": Method(
        {"double_frequency": {}, "double_frequency(private=0.8)": {}},
        {"private": "double_frequency(private=0)"},
        takes_open=False,
    ),
    "frequency_cut": Method(
        {"frequency_cut": {}, "frequency_cut(rest=zero)": {}},
        {"rest": "frequency_cut(rest=drop)"},
        takes_open=False,
    ),
    "multiplex": Method(
        {"multiplex": {}, "multiplex(lookups=2)": {}, "multiplex(lookups=3, subtables=2)": {}},
        {
            "lookups": "multiplex(lookups=0)",
            "subtables": "multiplex(subtables=0)",
            "exact_rows": "multiplex(exact_rows=-1)",
        },
    ),
}
WIDTHS = {
    "uniform": Method({"uniform": {}}, {"dim": "uniform(dim=3)"}),
    "mde": Method(
        {
            "mde": {},
            "mde(power_of_two=false)": {},
            "mde(alpha=0.3)": {"enough_rows_is_exact": _ASKED},
        },
        {"alpha": "mde(alpha=1.5)", "power_of_two": "mde(power_of_two=often)"},
    ),
    "lowrank": Method(
        {"lowrank": {}, "lowrank(shared=true)": {}, "lowrank(after=true)": {}},
        {"rank": "lowrank(rank=3)", "after": "lowrank(shared=true, after=true)"},
    ),
    "dnis": Method(
        {"dnis": {}, "dnis(form=element, blocks=3)": {}, "dnis(retrain=initial)": {}},
        {
            "form": "dnis(form=row)",
            "blocks": "dnis(blocks=0)",
            "search_epochs": "dnis(search_epochs=0)",
            "lr": "dnis(lr=0)",
            "l1": "dnis(l1=-1)",
            "retrain": "dnis(retrain=never)",
        },
    ),
    "magnitude": Method(
        {"magnitude": {}, "magnitude(retrain=initial)": {}},
        {
            "prune_epochs": "magnitude(prune_epochs=0)",
            "retrain": "magnitude(retrain=never)",
        },
    ),
    "pep": Method(
        {"pep": {}, "pep(per=row, retrain=found)": {}},
        {
            "per": "pep(per=column)",
            "search_epochs": "pep(search_epochs=0)",
            "retrain": "pep(retrain=never)",
        },
    ),
    "optembed": Method(
        {"optembed": {}, "optembed(retrain=found)": {}},
        {
            "alpha": "optembed(alpha=-1)",
            "lr": "optembed(lr=0)",
            "kappa": "optembed(kappa=0)",
            "population": "optembed(population=1)",
            "generations": "optembed(generations=-1)",
            "eval_rows": "optembed(eval_rows=0)",
            "retrain": "optembed(retrain=never)",
        },
    ),
    "autodim": Method(
        {"autodim": _FOUND, "autodim(retrain=initial)": _FOUND},
        {
            "search_epochs": "autodim(search_epochs=0)",
            "lr": "autodim(lr=0)",
            "retrain": "autodim(retrain=never)",
        },
    ),
}
PRECISIONS = {
    "fp32": Method({"fp32": {}}, {"train": "fp32(train=true)"}),
    "fp16": Method({"fp16": {}, "fp16(train=true)": _HELD}, {"train": "fp16(train=perhaps)"}),
    "int8": Method({"int8": {}, "int8(train=true)": _HELD}, {"bits": "int8(bits=4)"}),
}
_CUT: Failures = {
    "learns": "at full width most of the items share one row, or zeros, which cannot learn the "
    "planted number of each"
}
COMBINATIONS: Mapping[str, Failures] = {
    **{f"frequency_cut+uniform+{bits}": _CUT for bits in ("fp32", "fp16", "int8")},
    "frequency_cut(rest=zero)+uniform+fp32": _CUT,
    "qr+mde(power_of_two=false)+int8": {
        "budget_is_kept_and_monotone": "at full width a float32 projection falls away that can be "
        "larger than the int8 rows it narrowed, so the next larger share is a smaller file",
    },
}
"""Expected failures of single combinations."""
METHODS = {"sharing": SHARINGS, "width": WIDTHS, "precision": PRECISIONS}


@dataclass(frozen=True)
class Case:
    """One table to test: a form of each axis."""

    sharing: str
    width: str
    precision: str
    expect_failure: Failures = field(compare=False)

    def __str__(self) -> str:
        return f"{self.sharing}+{self.width}+{self.precision}".replace(" ", "")

    @property
    def takes_open(self) -> bool:
        """Whether its methods take open vocabularies."""
        return SHARINGS[self.sharing.partition("(")[0]].takes_open and not self._counted

    @property
    def _counted(self) -> bool:
        config = parse_table(self.width).width
        search = widths.get(config.kind).search(config)
        return search is not None and search.counted

    @property
    def searches(self) -> bool:
        """Whether its width learns its structure."""
        return _searches(self.width)

    @property
    def prunes(self) -> bool:
        """Whether rows have zeros that stay zero."""
        return widths.get(self.width.partition("(")[0]).prunes

    @property
    def held(self) -> bool:
        """Whether rows are held in few bits while training."""
        return "train=true" in self.precision


def _case(sharing: str, width: str, precision: str) -> Case:
    forms = sharing, width, precision
    failures: dict[str, str] = {}
    for form, methods in zip(forms, METHODS.values(), strict=True):
        failures.update(methods[form.partition("(")[0]].forms[form])
    failures.update(COMBINATIONS.get("+".join(forms), {}))
    return Case(sharing, width, precision, failures)


def _searches(width: str) -> bool:
    config = parse_table(width).width
    return widths.get(config.kind).search(config) is not None


@cache
def refused(sharing: str, width: str) -> bool:
    """Return whether a sharing has not the rows that a width needs, at some size."""
    config = parse_table(f"{sharing}+{width}")
    method, offers = widths.get(config.width.kind), sharings.get(config.sharing.kind)
    needs = method.needs(config.width)
    if needs == "any rows":
        return False
    counts = np.arange(300, 0, -1)
    tables = [Table(name, 300, 8, ordered=True, counts=counts) for name in ("a", "b")]
    stored = method.widths(config.width, tables, 1.0)
    tables = [table.narrowed(value) for table, value in zip(tables, stored, strict=True)]
    for share in (1.0, 0.5, 0.25, 0.0):
        places = offers.allocate(config.sharing, tables, share).values()
        users = Counter(row.name for rows in places for row in rows)
        if any(len(rows) > 1 or min(row.dim for row in rows) < stored[0] for rows in places):
            return True
        if needs == "own rows" and max(users.values(), default=1) > 1:
            return True
    return False


def _all_cases() -> list[Case]:
    """Return all triples of bare kinds, and each form with options in two settings.

    A search is run with every sharing that has the rows it needs, in float32, and once in int8.
    """
    bare = [list(methods) for methods in METHODS.values()]
    triples: list[tuple[str, ...]] = [
        (sharing, width, bits)
        for sharing, width, bits in product(*bare)
        if not refused(sharing, width)
        and (not _searches(width) or bits == "fp32" or (sharing, bits) == ("hash", "int8"))
    ]
    for axis, methods in enumerate(METHODS.values()):
        forms = [form for method in methods.values() for form in method.forms if "(" in form]
        for form in forms:
            for rest in (["hash", "uniform", "fp32"], ["qr", "mde", "int8"]):
                if axis == 1 and refused(rest[0], form):
                    rest = ["frequency", "mde", "int8"]
                triples.append((*rest[:axis], form, *rest[axis + 1 :]))
    return [_case(*triple) for triple in triples]


CASES = _all_cases()
REFUSED_PAIRS = [pair for pair in product(SHARINGS, WIDTHS) if refused(*pair)]
REFUSED = [
    (text, option)
    for methods in METHODS.values()
    for method in methods.values()
    for option, text in method.refused.items()
]
CONFIGS = {case: parse_table(str(case)) for case in CASES}
