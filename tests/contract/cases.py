"""The table of cases: add one row here with a new method, and every check runs on it.

A row holds the forms of a method to test, options that must be refused, and the checks that are
expected to fail, each with the reason. A check that fails without being declared is an error, and so
is a declared one that passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from embtables.compressor import parse_table

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
    "lowrank": Method({"lowrank": {}}, {"rank": "lowrank(rank=3)"}),
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
        """Whether its sharing takes open vocabularies."""
        return SHARINGS[self.sharing.partition("(")[0]].takes_open

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


def _all_cases() -> list[Case]:
    """Return all triples of bare kinds, and each form with options in two settings."""
    bare = [list(methods) for methods in METHODS.values()]
    triples = list(product(*bare))
    for axis, methods in enumerate(METHODS.values()):
        forms = [form for method in methods.values() for form in method.forms if "(" in form]
        for form in forms:
            for rest in (["hash", "uniform", "fp32"], ["qr", "mde", "int8"]):
                triples.append((*rest[:axis], form, *rest[axis + 1 :]))
    return [_case(*triple) for triple in triples]


CASES = _all_cases()
REFUSED = [
    (text, option)
    for methods in METHODS.values()
    for method in methods.values()
    for option, text in method.refused.items()
]
CONFIGS = {case: parse_table(str(case)) for case in CASES}
