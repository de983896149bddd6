"""What every registered model must do, whatever its data: discovered, not listed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from model_inputs import HISTORY, MULTI, NUMERIC, PLAIN, build, keyed, randomize, read
from pydantic import ValidationError
from torch.testing import assert_close

from models.base import Inputs, models

KINDS = models.names()
DATA = {"plain": PLAIN, "numeric": NUMERIC, "multi": MULTI, "history": HISTORY}
ROWS = {"one": [2], "one_empty": [0], "several": [3, 0, 1, 4, 2], "all_empty": [0, 0, 0]}
ANY_WIDTH = {"lr", "dcnv2", "din"}

every_model = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def data_for(kind: str) -> dict[str, Inputs]:
    """DIN refuses data without a history, MF data without a user; their tests say so."""
    if kind == "mf":
        return {name: inputs for name, inputs in DATA.items() if inputs is not MULTI}
    return {"history": HISTORY} if kind == "din" else DATA


CASES = [pytest.param(k, d, id=f"{k}-{n}") for k in KINDS for n, d in data_for(k).items()]
NORMALISED = [k for k in KINDS if "batch_norm" in models.get(k).Config.model_fields]


def test_the_models_of_the_library_are_found() -> None:
    assert {"lr", "fm", "deepfm", "dlrm", "dcnv2", "autoint", "autoint_plus", "din", "mf"} <= set(
        KINDS
    )


@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_logits_and_gradients_are_finite(kind: str, inputs: Inputs, lengths: list[int]) -> None:
    model, features, dims = build(kind, inputs)
    batch = read(features, dims, inputs, lengths)
    logits = model.train()(*batch)
    assert logits.shape == (len(lengths),)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    for name, leaf in batch.leaves.items():
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name


@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_gradient_reaches_every_parameter_and_every_vector(kind: str, inputs: Inputs) -> None:
    model, features, dims = build(kind, inputs)
    randomize(model)
    batch = read(features, dims, inputs, ROWS["several"])
    (model.train()(*batch) * torch.randn(5)).sum().backward()
    for name, tensor in [*model.named_parameters(), *batch.leaves.items()]:
        assert tensor.grad is not None, name
        assert tensor.grad.abs().sum() > 0, name


@pytest.mark.parametrize("lengths", [[2], [3, 0, 1]], ids=["one row", "three rows"])
@pytest.mark.parametrize("kind", NORMALISED)
def test_batch_norm_trains_on_any_batch(kind: str, lengths: list[int]) -> None:
    model, features, dims = build(kind, HISTORY, batch_norm=True, dropout=0.3)
    logits = model.train()(*read(features, dims, HISTORY, lengths))
    assert logits.isfinite().all()


@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_a_batch_equals_its_rows_one_by_one(kind: str, inputs: Inputs) -> None:
    model, features, dims = build(kind, inputs)
    randomize(model)
    batch = read(features, dims, inputs, ROWS["several"])
    model.train()(*batch)  # running statistics away from their start
    model.eval()
    alone = [model(*batch.row(b)) for b in range(5)]
    assert_close(model(*batch), torch.cat(alone))


@every_model
def test_the_order_of_the_keyed_tensor_does_not_matter(kind: str) -> None:
    model, features, dims = build(kind, HISTORY)
    randomize(model)
    batch = read(features, dims, HISTORY, ROWS["several"])
    pooled = {name: leaf for name, leaf in batch.leaves.items() if name not in batch.sequences}
    shuffled = keyed(dict(reversed(pooled.items())))
    model.eval()
    assert_close(model(batch.dense, shuffled, batch.sequences), model(*batch))


@every_model
def test_inputs_are_left_as_they_are(kind: str) -> None:
    model, features, dims = build(kind, HISTORY)
    batch = read(features, dims, HISTORY, ROWS["several"])
    before = [tensor.clone() for tensor in (batch.dense, batch.pooled.values())]
    model.train()(*batch)
    assert_close([batch.dense, batch.pooled.values()], before, rtol=0, atol=0)


@every_model
def test_bfloat16_autocast(kind: str) -> None:
    model, features, dims = build(kind, HISTORY)
    model = model.float().eval()
    batch = read(features, dims, HISTORY, ROWS["several"], torch.float32)
    full = model(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(*batch)
    assert half.dtype == torch.float32
    assert_close(half, full, rtol=0.05, atol=0.05 * full.abs().max().item())
    half.sum().backward()


@every_model
def test_state_round_trip(kind: str) -> None:
    model, features, dims = build(kind, HISTORY)
    other, _, _ = build(kind, HISTORY)
    randomize(model)
    batch = read(features, dims, HISTORY, ROWS["several"])
    model.train()(*batch)
    other.load_state_dict(model.state_dict())
    assert_close(other.eval()(*batch), model.eval()(*batch), rtol=0, atol=0)


@every_model
def test_narrow_tables_are_accepted_and_unequal_ones_where_the_formula_allows(kind: str) -> None:
    asked = [feature.name for feature in build(kind, HISTORY)[1] if feature.dim > 1]
    model, features, dims = build(kind, HISTORY, dict.fromkeys(asked, 2))
    assert model(*read(features, dims, HISTORY, [1, 2])).shape == (2,)
    if kind in ANY_WIDTH:
        build(kind, HISTORY, dict.fromkeys({"user"} & set(asked), 1))
    else:
        with pytest.raises(ValueError, match="user=1"):
            build(kind, HISTORY, {"user": 1})


def test_dlrm_takes_any_widths_without_products() -> None:
    model, features, dims = build("dlrm", NUMERIC, {"user": 1}, interaction="cat")
    assert model(*read(features, dims, NUMERIC, [0, 0])).shape == (2,)


@every_model
def test_main_vectors_come_first_and_weights_after_them(kind: str) -> None:
    _, features, _ = build(kind, HISTORY)
    weights = [":linear" in feature.name for feature in features]
    assert weights == sorted(weights)
    assert all(f.dim == (1 if w else 4) for f, w in zip(features, weights, strict=True))


@every_model
def test_the_file_names_the_kind_and_describes_it(kind: str) -> None:
    assert models.get(kind).Config.model_fields["kind"].default == kind
    assert models.descriptions()[kind].endswith(".")


@every_model
@pytest.mark.parametrize("option", [{"layerz": 3}, {"dim": 0}])
def test_a_wrong_option_is_refused(kind: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        build(kind, HISTORY, **option)


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        ("autoint", {"attention_dim": 10, "heads": 4}, "attention_dim=10.*multiple of heads=4"),
        ("autoint", {"dropout": 1.0}, "less than 1"),
        ("autoint_plus", {"hidden": []}, "at least 1 item"),
        ("deepfm", {"hidden": [400, 0]}, r"hidden\.1"),
        ("dcnv2", {"rank": 0}, "rank"),
        ("dlrm", {"interaction": "dots"}, "'dot' or 'cat'"),
        ("din", {"attention_activation": "gelu"}, "'relu', 'prelu' or 'dice'"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(
    kind: str, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        build(kind, HISTORY, **option)


def test_models_import_without_torchrec() -> None:
    code = (
        "import sys; from models.base import models; models.config_union();"
        "print([m for m in sys.modules if m.split('.')[0] in ('torchrec', 'fbgemm_gpu')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
