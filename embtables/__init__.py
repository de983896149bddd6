"""The engine: embedding tables as three decisions (sharing, width, precision) under one byte budget.

Names are imported on first use: importing the package costs no torch, and reading a configuration
costs no torchrec.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embtables.budget import parse_bytes
    from embtables.compressor import Pairs, TableConfig, parse_table
    from embtables.features import Feature, Vocabulary
    from embtables.packed import PackedTables
    from embtables.rows.optimizers import (
        SGD,
        Adagrad,
        Adam,
        DenseAdam,
        RowOptimizer,
        RowWiseAdagrad,
    )
    from embtables.rows.store import Init
    from embtables.tables import Bytes, EmbeddingTables

_HOME = {
    "parse_bytes": "budget",
    "Pairs": "compressor",
    "TableConfig": "compressor",
    "parse_table": "compressor",
    "Feature": "features",
    "Vocabulary": "features",
    "PackedTables": "packed",
    "Adagrad": "rows.optimizers",
    "Adam": "rows.optimizers",
    "DenseAdam": "rows.optimizers",
    "RowOptimizer": "rows.optimizers",
    "RowWiseAdagrad": "rows.optimizers",
    "SGD": "rows.optimizers",
    "Init": "rows.store",
    "Bytes": "tables",
    "EmbeddingTables": "tables",
}

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "Bytes",
    "DenseAdam",
    "EmbeddingTables",
    "Feature",
    "Init",
    "PackedTables",
    "Pairs",
    "RowOptimizer",
    "RowWiseAdagrad",
    "TableConfig",
    "Vocabulary",
    "parse_bytes",
    "parse_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'embtables' has no attribute {name!r}")
    return getattr(import_module(f"embtables.{_HOME[name]}"), name)
