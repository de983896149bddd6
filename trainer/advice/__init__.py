"""Which tables to try first under a budget, and why: `embtables advise`.

Facts of the data (`facts`) and what the engine plans under the budget (`candidates`) say what can be
tried; measurements (`evidence`, `sweeps`) say in which order (`ranking`, `choice`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from data.store import Store
from embtables.budget import byte_budget, parse_bytes, table_configs
from embtables.compressor import Table
from embtables.tables import logical_tables
from models.base import models
from trainer.advice.choice import Advice, Limits, choose
from trainer.advice.evidence import read_evidence, with_same
from trainer.advice.facts import Rows, facts_of
from trainer.advice.sweeps import sweeps_at_hand
from trainer.config import RunConfig, load_config
from trainer.datasets import model_inputs, open_store, vocabularies

__all__ = ["Advice", "Limits", "advise"]

_ASKED = ("table", "budget", "ratio")


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
    if any(text.partition("=")[0] in _ASKED for text in overrides):
        raise ValueError(
            "table, budget and ratio are what advice is about: give --budget or --ratio"
        )
    loaded = load_config(recipe, overrides)
    config = loaded.config
    store = open_store(config)
    tables = tables_of(config, store)
    table_configs(tables, config.table, config.fields)
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
    words = (recipe, *overrides, where)
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
