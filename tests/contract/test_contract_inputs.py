"""Contract: ids and options out of range are refused by name; open vocabularies take any id."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import CONFIGS, REFUSED, Case
from pydantic import ValidationError
from world import BAGS, FEATURES, INTERACTIONS, ROWS, VOCABULARIES, build, middle, outputs, step

from embtables import EmbeddingTables, TableConfig, Vocabulary, parse_table

EXTREMES = [-1, -(2**63), 2**63 - 1, 2**31, 0, 12345678901234567]
OPEN = {name: Vocabulary(rows, open=name in ("item", "shop")) for name, rows in ROWS.items()}


def test_bad_ids_raise(case: Case) -> None:
    tables = build(case)
    for bad in (-1, ROWS["item"], 2**40, -(2**63), 2**63 - 1):
        bags = {**BAGS, "item": [[7], [bad], [299], [0]]}
        with pytest.raises(ValueError, match=rf"feature '(item|linear)': id {bad} .*0 .. 299"):
            outputs(tables, bags)
    with pytest.raises(ValueError, match="feature 'tag': id 120"):
        outputs(tables, {**BAGS, "tag": [[], [120], [], []]})
    with pytest.raises(ValueError, match="no key 'tag'"):
        outputs(tables, {key: bags for key, bags in BAGS.items() if key != "tag"})


def test_unknown_ids_read_the_oov_row(case: Case) -> None:
    vocabularies = VOCABULARIES | {
        name: replace(VOCABULARIES[name], oov=oov) for name, oov in (("item", 299), ("shop", 0))
    }
    tables = build(case, vocabularies=vocabularies)
    asked = {**BAGS, "item": [[-1], [300], [2**63 - 1], [7]], "shop": [[97, 3], [], [-5], [1]]}
    meant = {**BAGS, "item": [[299], [299], [299], [7]], "shop": [[0, 3], [], [0], [1]]}
    asked["history"], meant["history"] = [[500]] * 4, [[299]] * 4
    with pytest.raises(ValueError, match="feature 'linear'"):
        outputs(tables, asked)
    linear = replace(VOCABULARIES["linear"], oov=299)
    tables = build(case, vocabularies=vocabularies | {"linear": linear})
    expected = outputs(tables, meant)
    for name, found in outputs(tables, asked).items():
        assert torch.equal(found, expected[name]), name


def test_open_vocabularies(case: Case) -> None:
    if not case.takes_open:
        with pytest.raises(
            ValueError,
            match=r"table 'item': .*(open vocabulary|closed vocabulary( has|; with an open one))",
        ):
            build(case, vocabularies=OPEN)
        return
    tables = build(case, vocabularies=OPEN)
    bags = {key: [[i] for i in EXTREMES] for key in BAGS}
    bags |= {key: [[1] for _ in EXTREMES] for key in ("tag", "color", "size")}
    # Closed fields beside the open ones still refuse.
    with pytest.raises(ValueError, match="feature 'linear': id -1 "):
        outputs(tables, bags)
    tables = build(case, vocabularies={**OPEN, "linear": Vocabulary(300, open=True)})
    found = outputs(tables, bags)
    assert all(torch.isfinite(vectors).all() for vectors in found.values())
    assert torch.equal(found["item"], found["history"])
    assert len(found["item"].unique(dim=0)) > 1
    step(tables, 0, bags)


def test_round_trip_of_the_compact_form(case: Case) -> None:
    config = parse_table(str(case))
    assert parse_table(str(config)) == config
    assert TableConfig.model_validate_json(config.model_dump_json()) == config
    assert parse_table(config.model_dump(mode="json")) == config
    assert config == CONFIGS[case]


def test_per_field_override(case: Case) -> None:
    """A field may be made of something else; the rest is as the case says."""
    tables = (
        EmbeddingTables(
            FEATURES,
            VOCABULARIES,
            table=CONFIGS[case],
            interactions=INTERACTIONS,
            fields={"shop": "full"},
            budget=middle(case) + 4000,
        )
        if not case.held and not case.searches
        else build(case, fields={"shop": "full"}, budget=middle(case) + 4000)
    )
    assert str(tables.plan["shop"].config) == "full"
    assert tables.plan["shop"].places[0].rows == ROWS["shop"]
    assert tables.bytes().inference <= middle(case) + 4000


@pytest.mark.parametrize(("text", "option"), [pytest.param(*row, id=row[0]) for row in REFUSED])
def test_options_out_of_range(text: str, option: str) -> None:
    with pytest.raises(ValidationError, match=option):
        parse_table(text)
