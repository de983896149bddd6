"""Every model against its formula, written out with loops over fields, pairs and heads."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from model_inputs import MULTI, NUMERIC, PLAIN, Read, build, randomize, read
from torch import Tensor, nn
from torch.testing import assert_close

from models.autoint import AutoIntConfig, InteractingLayer
from models.base import Inputs
from models.dcnv2 import CrossNet
from models.dlrm import PairDots
from models.fm import pair_sum

ROWS = [1] * 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def setup(kind: str, inputs: Inputs, **options):
    """Return (model in eval mode, batch, vectors [B, F+N, D] as the model should see them)."""
    model, features, dims = build(kind, inputs, **options)
    randomize(model)
    batch = read(features, dims, inputs, ROWS)
    return model.eval(), batch, field_vectors(model, batch, inputs)


def field_vectors(model: nn.Module, batch: Read, inputs: Inputs) -> Tensor:
    vectors = [batch.leaves[f.name] for f in inputs.fields if f.name in batch.leaves]
    numeric = dict(model.named_parameters()).get("fields.numeric.vectors")
    if numeric is None:
        numeric = dict(model.named_parameters()).get("numeric.vectors")
    if numeric is not None:
        vectors += [batch.dense[:, n, None] * numeric[n] for n in range(len(inputs.numeric))]
    return torch.stack(vectors, 1) if vectors else torch.empty(0)


def first_order(model: nn.Module, batch: Read, inputs: Inputs) -> Tensor:
    weights = dict(model.named_parameters())
    logit = torch.zeros(len(ROWS), dtype=torch.float64)
    for field in inputs.fields:
        logit = logit + batch.leaves[f"{field.name}:linear"][:, 0]
    for n in range(len(inputs.numeric)):
        logit = logit + batch.dense[:, n] * weights["first_order.weight"][n]
    return logit + weights.get("first_order.bias", 0)


def pairs(vectors: Tensor) -> Tensor:
    """Return sum_{i<j} <e_i, e_j> by the definition."""
    count = vectors.shape[1]
    dots = [
        (vectors[:, i] * vectors[:, j]).sum(1) for i, j in itertools.combinations(range(count), 2)
    ]
    return torch.stack(dots).sum(0)


def mlp(module: nn.Module, x: Tensor) -> Tensor:
    """Return x after every Linear, with ReLU in between."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        x = x @ layer.weight.T + layer.bias
        x = x if layer is layers[-1] else x.clamp(min=0)
    return x


@pytest.mark.parametrize("inputs", [PLAIN, NUMERIC, MULTI], ids=["plain", "numeric", "multi"])
class TestFirstAndSecondOrder:
    def test_lr(self, inputs: Inputs) -> None:
        model, batch, _ = setup("lr", inputs)
        assert_close(model(*batch), first_order(model, batch, inputs))

    def test_fm(self, inputs: Inputs) -> None:
        model, batch, vectors = setup("fm", inputs)
        assert_close(model(*batch), first_order(model, batch, inputs) + pairs(vectors))

    def test_deepfm(self, inputs: Inputs) -> None:
        model, batch, vectors = setup("deepfm", inputs, hidden=(7, 5))
        deep = mlp(model.get_submodule("mlp"), vectors.flatten(1))[:, 0]
        expected = first_order(model, batch, inputs) + pairs(vectors) + deep
        assert_close(model(*batch), expected)


def test_pair_sum_by_hand() -> None:
    vectors = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    assert pair_sum(vectors).item() == pytest.approx((3 + 8) + (5 + 12) + (15 + 24))


@pytest.mark.parametrize("fields", [1, 5])
def test_gradient_of_pair_sum(fields: int) -> None:
    vectors = torch.randn(3, fields, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pair_sum, vectors)


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layer(rank: int | None) -> None:
    net = CrossNet(width=4, layers=2, rank=rank).double()
    randomize(net)
    x0 = torch.randn(3, 4, dtype=torch.float64)
    expected = x0.clone()
    for layer in net.layers:
        parts = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        matrix = parts[0].weight if rank is None else parts[1].weight @ parts[0].weight
        new = expected.clone()
        for b, i in itertools.product(range(3), range(4)):
            inner = sum(matrix[i, j] * expected[b, j] for j in range(4)) + parts[-1].bias[i]
            new[b, i] = expected[b, i] + x0[b, i] * inner
        expected = new
    assert_close(net(x0), expected)


@pytest.mark.parametrize("structure", ["parallel", "stacked", "crossnet_only"])
@pytest.mark.parametrize("numeric", ["vector", "value"])
def test_dcnv2_structures(structure: str, numeric: str) -> None:
    model, batch, vectors = setup(
        "dcnv2", NUMERIC, structure=structure, numeric=numeric, hidden=(6, 5)
    )
    x0 = vectors.flatten(1)
    if numeric == "value":
        x0 = torch.cat([x0, batch.dense], 1)
    crossed, deep = model.get_submodule("cross")(x0), model.get_submodule("mlp")
    if structure == "parallel":
        both = torch.cat([crossed, mlp(deep, x0).clamp(min=0)], 1)
        expected = mlp(model.get_submodule("out"), both)[:, 0]
    else:
        expected = mlp(deep, crossed)[:, 0]
    hidden_layers = sum(isinstance(m, nn.Linear) for m in deep.modules())
    assert hidden_layers == {"parallel": 2, "stacked": 3, "crossnet_only": 1}[structure]
    assert_close(model(*batch), expected)


def test_pair_dots_by_hand() -> None:
    vectors = torch.tensor([[[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]]])
    assert PairDots(3)(vectors).tolist() == [[2.0, 0.0, 3.0]]


@pytest.mark.parametrize("inputs", [PLAIN, NUMERIC], ids=["plain", "numeric"])
@pytest.mark.parametrize("interaction", ["dot", "cat"])
def test_dlrm(inputs: Inputs, interaction: str) -> None:
    model, batch, vectors = setup("dlrm", inputs, interaction=interaction, bottom=(6,), top=(7, 5))
    below = []
    if inputs.numeric:
        below = [mlp(model.get_submodule("bottom"), batch.dense).clamp(min=0)]
    everything = [*below, *vectors.unbind(1)]
    if interaction == "dot":
        read_by_top = below + [
            (everything[i] * everything[j]).sum(1, keepdim=True)
            for i in range(len(everything))
            for j in range(i)
        ]
    else:
        read_by_top = everything
    expected = mlp(model.get_submodule("top"), torch.cat(read_by_top, 1))[:, 0]
    assert_close(model(*batch), expected)


def interacting(layer: InteractingLayer, x: Tensor, config: AutoIntConfig) -> Tensor:
    """Return the interacting layer head by head, field by field (AutoInt, section 4.4)."""
    head = config.attention_dim // config.heads
    weights = dict(layer.named_parameters())
    rows, fields = x.shape[:2]
    out = torch.zeros(rows, fields, config.attention_dim, dtype=x.dtype)
    for b, h, m in itertools.product(range(rows), range(config.heads), range(fields)):
        part = slice(h * head, (h + 1) * head)
        query = weights["query.weight"][part] @ x[b, m]
        scores = [query @ (weights["key.weight"][part] @ x[b, k]) for k in range(fields)]
        scores = torch.stack(scores) / (math.sqrt(head) if config.scale else 1)
        shares = scores.exp() / scores.exp().sum()
        out[b, m, part] = sum(
            shares[k] * (weights["value.weight"][part] @ x[b, k]) for k in range(fields)
        )
    if config.residual:
        projected = "residual.weight" in weights
        out = out + (x @ weights["residual.weight"].T if projected else x)
    if config.layer_norm:
        center = out - out.mean(2, keepdim=True)
        out = center / (center.square().mean(2, keepdim=True) + 1e-5).sqrt()
        out = out * weights["norm.weight"] + weights["norm.bias"]
    return out.clamp(min=0)


@pytest.mark.parametrize("width", [4, 6])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_interacting_layer(width: int, scale: bool, residual: bool, layer_norm: bool) -> None:
    switches = {"scale": scale, "residual": residual, "layer_norm": layer_norm}
    config = AutoIntConfig.model_validate({"heads": 2, "attention_dim": width} | switches)
    layer = InteractingLayer(4, config).double()
    randomize(layer)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    assert_close(layer(x), interacting(layer, x, config))
    assert ("residual.weight" in dict(layer.named_parameters())) == (residual and width != 4)


def test_heads_split_flat() -> None:
    """Two heads over three fields of width 4: each head reads six half vectors of 1.5 fields."""
    options = {"heads": 2, "attention_dim": 4, "residual": False}
    layer = InteractingLayer(4, AutoIntConfig.model_validate(options | {"head_split": "flat"}))
    layer = layer.double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    q, k, v = ((x @ w.T).flatten(1) for w in layer.parameters())
    pieces = []
    for h in range(2):
        halves = [part[:, 6 * h : 6 * h + 6].view(5, 3, 2) for part in (q, k, v)]
        scores = torch.einsum("bic,bjc->bij", halves[0], halves[1]) / math.sqrt(2)
        pieces.append((scores.softmax(2) @ halves[2]).flatten(1))
    expected = torch.cat(pieces, 1).view(5, 3, 4).clamp(min=0)
    assert_close(layer(x), expected)
    assert_close(layer.float()(x.float()), expected.float())  # by the kernels


@pytest.mark.parametrize("kind", ["autoint", "autoint_plus"])
@pytest.mark.parametrize("wide", [False, True])
def test_autoint(kind: str, wide: bool) -> None:
    options = {"hidden": (6, 5)} if kind == "autoint_plus" else {}
    options |= {"layers": 2, "heads": 2, "attention_dim": 6, "wide": wide}
    model, batch, vectors = setup(kind, NUMERIC, **options)
    config = AutoIntConfig.model_validate({"heads": 2, "attention_dim": 6})
    x = vectors
    for layer in model.get_submodule("attention").children():
        assert isinstance(layer, InteractingLayer)
        x = interacting(layer, x, config)
    expected = mlp(model.get_submodule("out"), x.flatten(1))[:, 0]
    if wide:
        expected = expected + first_order(model, batch, NUMERIC)
    if kind == "autoint_plus":
        expected = expected + mlp(model.get_submodule("mlp"), vectors.flatten(1))[:, 0]
    assert_close(model(*batch), expected)
