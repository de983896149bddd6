"""Shared layers: reading vectors without copies, starts, BatchNorm on one row."""

from __future__ import annotations

import math

import pytest
import torch
from model_inputs import HISTORY, NUMERIC, keyed
from torch.testing import assert_close

from models.layers import (
    MLP,
    BatchNorm,
    FieldVectors,
    FirstOrder,
    Linear,
    Logit,
    NumericVectors,
    flatten,
    linear_features,
    main_features,
    stack,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pooled(**widths: int):
    return keyed({name: torch.randn(3, width) for name, width in widths.items()})


def test_neighbours_are_read_without_a_copy() -> None:
    vectors = pooled(a=2, b=2, c=2, rest=1)
    read = stack(vectors, ["a", "b", "c"], 2)
    assert read.shape == (3, 3, 2)
    assert read.untyped_storage().data_ptr() == vectors.values().untyped_storage().data_ptr()
    for i, name in enumerate("abc"):
        assert_close(read[:, i], vectors[name])


@pytest.mark.parametrize("names", ["ca", "ac", "bac", "acbd", "abcd", "b"])
def test_any_features_in_any_order_and_of_any_width(names: str) -> None:
    vectors = pooled(a=2, b=3, c=1, d=2)
    assert_close(flatten(vectors, list(names)), torch.cat([vectors[name] for name in names], 1))


def test_features_that_a_model_asks_for() -> None:
    main, first = main_features(HISTORY, 8), linear_features(HISTORY)
    assert [f.name for f in main] == [f.name for f in HISTORY.fields]
    assert {f.dim for f in main} == {8}
    assert [(f.name, f.key, f.table, f.dim, f.pooling) for f in first[1:4:2]] == [
        ("item:linear", "item", "item:linear", 1, "sum"),
        ("items_seen:linear", "items_seen", "item:linear", 1, "mean"),
    ]


def test_unequal_widths_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"user=4, item=2, shop=4.*dcnv2"):
        FieldVectors(NUMERIC, {"user": 4, "item": 2, "shop": 4})


def test_a_missing_value_reads_no_numeric_vector() -> None:
    vectors = NumericVectors(2, 3)(torch.tensor([[0.0, 2.0]]))
    assert vectors[0, 0].tolist() == [0.0] * 3
    assert vectors[0, 1].abs().min() > 0


def test_linear_layers_start_xavier_normal_with_bias_zero() -> None:
    for layer in (Linear(600, 200), Logit(4000)):
        fan = sum(layer.weight.shape)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.05)
        assert layer.bias.abs().sum() == 0


def test_first_order_starts_at_zero() -> None:
    first = FirstOrder(NUMERIC, bias=True)
    weights = keyed({f.name: torch.zeros(3, 1) for f in linear_features(NUMERIC)})
    assert first(torch.randn(3, 2), weights).tolist() == [0.0] * 3


def test_mlp_blocks_come_in_the_order_of_fuxictr() -> None:
    mlp = MLP(5, (4, 3), batch_norm=True, dropout=0.5)
    block = ["Linear", "BatchNorm", "ReLU", "Dropout"]
    assert [type(layer).__name__ for layer in mlp] == [*block, *block, "Logit"]
    assert MLP(5, (4, 3), logit=False)(torch.randn(2, 5)).shape == (2, 3)
    assert MLP(5, ())(torch.randn(2, 5)).shape == (2,)


def test_batch_norm_of_one_row_uses_and_keeps_the_running_statistics() -> None:
    norm = BatchNorm(2).train()
    norm(torch.randn(100, 2) * 3 + 5)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    row = torch.randn(1, 2)
    trained = norm(row)
    assert_close(norm.running_mean, before)
    assert_close(trained, norm.eval()(row))


def test_batch_norm_of_several_rows_is_torchs() -> None:
    ours, torchs = BatchNorm(2).train(), torch.nn.BatchNorm1d(2).train()
    x = torch.randn(7, 2)
    assert_close(ours(x), torchs(x))
    assert_close(ours.state_dict(), torchs.state_dict())


def test_the_logit_keeps_full_precision_under_autocast() -> None:
    logit, x = Logit(8), torch.randn(4, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = logit(x)
    assert scores.dtype == torch.float32
    assert_close(scores, (x.float() @ logit.weight.T + logit.bias)[:, 0])
