"""Contract: every registered method has a row in the table, a documented file and real checks."""

from __future__ import annotations

import ast
import re
from itertools import product
from pathlib import Path

import pytest
from cases import CASES, METHODS, REFUSED, REFUSED_PAIRS, SHARINGS
from world import FEATURES, VOCABULARIES

from embtables import EmbeddingTables
from embtables.compressor import AXES, parse_table

KINDS = [
    pytest.param(axis, kind, id=f"{axis}-{kind}")
    for axis, registry in AXES.items()
    for kind in registry.names()
]


@pytest.mark.parametrize(("axis", "kind"), KINDS)
def test_has_a_row_of_cases(axis: str, kind: str) -> None:
    assert kind in METHODS[axis], f"add a row for {kind!r} to tests/contract/cases.py"
    method = METHODS[axis][kind]
    assert next(iter(method.forms)) == kind
    for form in method.forms:
        assert getattr(parse_table(form), axis).kind == kind
    assert method.refused, f"{kind}: name an option that must be refused, if only an unknown one"


@pytest.mark.parametrize(("axis", "kind"), KINDS)
def test_every_option_has_a_refused_value(axis: str, kind: str) -> None:
    options = set(AXES[axis].get(kind).Config.model_fields) - {"kind"}
    tested = {option for text, option in REFUSED if text.startswith(f"{kind}(")}
    unchecked = options - tested - _booleans(axis, kind)
    assert not unchecked


def _booleans(axis: str, kind: str) -> set[str]:
    fields = AXES[axis].get(kind).Config.model_fields
    return {name for name, one in fields.items() if one.annotation is bool}


@pytest.mark.parametrize(("axis", "kind"), KINDS)
def test_file_says_what_it_is(axis: str, kind: str) -> None:
    registry = AXES[axis]
    doc = ast.get_docstring(ast.parse((registry._folder() / f"{kind}.py").read_text())) or ""
    first, _, rest = doc.partition("\n")
    assert first.endswith((".", ":")) or len(first) > 20
    assert registry.descriptions()[kind] == first
    assert re.search(r"[Bb]ytes?\b", doc), "say how many bytes it takes"
    assert "Paper:" in rest or re.search(r"\w+(\([^)]*\))?\s*=\s*\S|\d bytes", doc), "no formula"


def test_all_pairs_are_cases_or_refused() -> None:
    """Triples too; of a search each pair in float32 and one in int8."""
    names = {str(case) for case in CASES}
    sharing, width, precision = (registry.names() for registry in AXES.values())
    searches = {case.width for case in CASES if case.searches}
    for pair in product(sharing, width):
        text = "+".join(pair)
        if pair in REFUSED_PAIRS:
            assert not any(name.startswith(f"{text}+") for name in names)
        elif pair[1] in searches:
            assert f"{text}+fp32" in names
        else:
            assert {f"{text}+{bits}" for bits in precision} <= names
    assert {f"hash+{one}+int8" for one in searches & set(width)} <= names


@pytest.mark.parametrize(("sharing", "width"), REFUSED_PAIRS)
def test_pairs_that_do_not_fit_are_refused(sharing: str, width: str) -> None:
    for ratio in (0.4, 0.1):
        with pytest.raises(ValueError, match=rf"(?s){width} takes .*{sharing} ") as refused:
            EmbeddingTables(FEATURES, VOCABULARIES, table=f"{sharing}+{width}", ratio=ratio)
        named = re.findall(r"\w+", str(refused.value).partition("use ")[2])
        offered = {kind for kind in named if kind in SHARINGS}
        assert offered
        assert not any((kind, width) in REFUSED_PAIRS for kind in offered)


def test_expected_failures_name_real_checks() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    checks = set(re.findall(r"def test_(\w+)\((?:case|searching): Case", text))
    assert {check for case in CASES for check in case.expect_failure} <= checks
    assert all(reason for case in CASES for reason in case.expect_failure.values())
