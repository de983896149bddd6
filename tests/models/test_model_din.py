"""DIN: pairing of histories, jagged attention against a padded one, Dice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_inputs import HISTORY, MULTI, build, randomize, read
from torch import Tensor, nn
from torch.testing import assert_close
from torchrec.sparse.jagged_tensor import JaggedTensor

from models.base import InputField, Inputs
from models.din import DINConfig, History, InterestAttention, pair_histories, segment_softmax
from models.layers import Dice

LENGTHS = [3, 0, 1, 5, 0]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def attention(width: int = 4, **options) -> InterestAttention:
    unit = InterestAttention(width, DINConfig(attention_hidden=(6, 5), **options)).double()
    randomize(unit)
    return unit


def padded_interest(
    unit: InterestAttention, query: Tensor, keys: Tensor, lengths: list[int], softmax: bool
) -> Tensor:
    """Return [B, E] by padding histories with zeros to [B, T, E] and masking the scores."""
    longest = max(lengths)
    padded = torch.zeros(len(lengths), longest, keys.shape[1], dtype=keys.dtype)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    start = 0
    for b, length in enumerate(lengths):
        padded[b, :length] = keys[start : start + length]
        mask[b, :length] = True
        start += length
    q = query.unsqueeze(1).expand_as(padded)
    both = torch.cat([q, padded, q - padded, q * padded], 2)
    scores = unit.score(both.flatten(0, 1)).view(len(lengths), longest)
    if softmax:
        weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), 1).nan_to_num()
    else:
        weights = scores * mask
    return (weights.unsqueeze(2) * padded).sum(1)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("activation", ["dice", "relu", "prelu"])
def test_jagged_attention_equals_padded_attention(softmax: bool, activation: str) -> None:
    unit = attention(softmax=softmax, attention_activation=activation).eval()
    query = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    jagged = unit(query, keys, torch.tensor(LENGTHS))
    padded = padded_interest(unit, query, keys, LENGTHS, softmax)
    assert_close(jagged, padded)

    direction = torch.randn_like(jagged)
    parameters = [query, keys, *unit.parameters()]
    ours = torch.autograd.grad((jagged * direction).sum(), parameters)
    theirs = torch.autograd.grad((padded * direction).sum(), parameters)
    for got, wanted in zip(ours, theirs, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("softmax", [False, True])
def test_gradient_against_finite_differences(softmax: bool) -> None:
    unit = attention(2, softmax=softmax, attention_activation="dice").eval()
    query = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([1, 0, 3])
    assert torch.autograd.gradcheck(lambda q, k: unit(q, k, lengths), (query, keys))


def test_dice_of_the_attention_counts_behaviours_and_no_padding() -> None:
    unit = attention().train()
    query, keys = torch.randn(5, 4).double(), torch.randn(9, 4).double()
    unit(query, keys, torch.tensor(LENGTHS))
    q = query.repeat_interleave(torch.tensor(LENGTHS), 0)
    x = torch.cat([q, keys, q - keys, q * keys], 1)
    first, dice = unit.score[0], unit.score[1]
    assert isinstance(first, nn.Linear)
    assert isinstance(dice, Dice)
    assert_close(dice.norm.running_mean, 0.01 * first(x).mean(0))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_empty_histories_give_zero_interest(softmax: bool, training: bool) -> None:
    unit = attention(softmax=softmax).train(training)
    query = torch.randn(2, 4, dtype=torch.float64)
    empty = torch.zeros(0, 4, dtype=torch.float64)
    assert unit(query, empty, torch.tensor([0, 0])).tolist() == torch.zeros(2, 4).tolist()
    keys = torch.randn(3, 4, dtype=torch.float64)
    assert unit(query, keys, torch.tensor([0, 3]))[0].tolist() == [0.0] * 4


lengths_of_rows = st.lists(st.integers(0, 6), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(lengths_of_rows, st.integers(0, 2**31), st.sampled_from([1.0, 30.0, 1000.0]))
def test_segment_softmax_equals_softmax_row_by_row(
    lengths: list[int], seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(sum(lengths), generator=generator, dtype=torch.float64) * scale
    weights = segment_softmax(scores, torch.tensor(lengths))
    expected = [torch.softmax(part, 0) for part in scores.split(lengths)]
    assert_close(weights, torch.cat(expected))


@settings(max_examples=20, deadline=None)
@given(lengths_of_rows, st.integers(0, 2**31), st.booleans())
def test_interest_does_not_depend_on_the_order_of_behaviours(
    lengths: list[int], seed: int, softmax: bool
) -> None:
    torch.manual_seed(seed)
    unit = attention(softmax=softmax).eval()
    query = torch.randn(len(lengths), 4, dtype=torch.float64)
    keys = torch.randn(sum(lengths), 4, dtype=torch.float64)
    flipped = torch.cat([part.flip(0) for part in keys.split(lengths)])
    counts = torch.tensor(lengths)
    assert_close(unit(query, keys, counts), unit(query, flipped, counts))


def test_without_softmax_interest_grows_with_repetition() -> None:
    query, key = torch.randn(1, 4).double(), torch.randn(1, 4).double()
    once, thrice = torch.tensor([1]), torch.tensor([3])
    plain, normalised = attention().eval(), attention(softmax=True).eval()
    assert_close(plain(query, key.expand(3, 4), thrice), 3 * plain(query, key, once))
    assert_close(normalised(query, key.expand(3, 4), thrice), key)


@pytest.mark.parametrize("softmax", [False, True])
def test_whole_model_equals_its_formula(softmax: bool) -> None:
    options = {"attention_hidden": (6, 5), "hidden": (7,), "activation": "relu"}
    model, features, dims = build("din", HISTORY, softmax=softmax, **options)
    randomize(model)
    batch = read(features, dims, HISTORY, LENGTHS)
    model.eval()
    vec = batch.leaves
    unit = model.get_submodule("attention.0")
    assert isinstance(unit, InterestAttention)
    query = torch.cat([vec["item"], vec["shop"]], 1)
    keys = torch.cat([vec["items_seen"], vec["shops_seen"]], 1)
    interest = padded_interest(unit, query, keys, LENGTHS, softmax)
    fields = [vec["user"], vec["item"], vec["shop"], batch.dense, interest]
    assert_close(model(*batch), model.get_submodule("head")(torch.cat(fields, 1)))


def test_mean_history_feeds_the_same_head() -> None:
    model, features, dims = build("din", HISTORY, history="mean", hidden=(7,))
    assert {f.name: f.pooling for f in features}["items_seen"] == "mean"
    batch = read(features, dims, HISTORY, LENGTHS)
    model.eval()
    fields = [batch.leaves[feature.name] for feature in features] + [batch.dense]
    assert_close(model(*batch), model.get_submodule("head")(torch.cat(fields, 1)))


def test_histories_are_asked_for_behaviour_by_behaviour_from_the_candidates_table() -> None:
    _, features, _ = build("din", HISTORY)
    asked = {f.name: (f.table, f.pooling) for f in features}
    assert asked["items_seen"] == ("item", "none")
    assert asked["shops_seen"] == ("shop", "none")
    assert asked["item"] == ("item", "sum")


def test_clicked_and_skipped_items_are_two_streams() -> None:
    fields = (
        InputField("item", "item"),
        InputField("other_item", "item"),
        InputField("shop", "shop"),
        InputField("clicked", "item", "sequence"),
        InputField("skipped", "item", "sequence"),
        InputField("clicked_shops", "shop", "sequence"),
    )
    assert pair_histories(Inputs((), fields)) == [
        History(("item", "shop"), ("clicked", "clicked_shops")),
        History(("item",), ("skipped",)),
    ]


def test_a_history_without_candidate_is_an_error() -> None:
    fields = (InputField("item", "item"), InputField("queries", "query", "sequence"))
    with pytest.raises(ValueError, match=r"'queries' reads table 'query'.*item \(table item\)"):
        build("din", Inputs((), fields))
    build("din", Inputs((), fields), history="mean")


def test_data_without_history_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"kind sequence.*item, tags, shop"):
        build("din", MULTI)


def test_histories_of_one_stream_must_be_equally_long() -> None:
    model, features, dims = build("din", HISTORY)
    batch = read(features, dims, HISTORY, [2, 1])
    other = torch.tensor([1, 2])
    batch.sequences["shops_seen"] = JaggedTensor(batch.leaves["shops_seen"], lengths=other)
    with pytest.raises(ValueError, match="'items_seen' and 'shops_seen'"):
        model(*batch)


def test_candidate_and_behaviour_need_one_width() -> None:
    build("din", HISTORY, {"item": 3, "items_seen": 3, "user": 1})
    with pytest.raises(ValueError, match=r"'items_seen' with 'item'.*3 and 4"):
        build("din", HISTORY, {"items_seen": 3})


class TestDice:
    def test_alpha_one_is_the_identity(self) -> None:
        dice, x = Dice(3).double(), torch.randn(6, 3).double()
        nn.init.ones_(dice.alpha)
        assert_close(dice(x), x)

    def test_formula_on_batch_statistics(self) -> None:
        dice, x = Dice(3).double(), torch.randn(6, 3).double() * 4 + 1
        nn.init.constant_(dice.alpha, 0.2)
        gate = 1 / (1 + torch.exp(-(x - x.mean(0)) / (x.var(0, correction=0) + 1e-9).sqrt()))
        assert_close(dice(x), gate * x + 0.2 * (1 - gate) * x)

    def test_far_above_and_far_below_the_mean(self) -> None:
        dice = Dice(1).eval()
        above, below = torch.tensor([[80.0]]), torch.tensor([[-80.0]])
        assert_close(dice(above), above)
        assert_close(dice(below), torch.zeros(1, 1))

    def test_evaluation_does_not_depend_on_the_rest_of_the_batch(self) -> None:
        dice, x = Dice(3).double(), torch.randn(6, 3).double()
        dice(torch.randn(50, 3).double() * 2 + 1)
        dice.eval()
        assert_close(dice(x), torch.cat([dice(row) for row in x.split(1)]))

    def test_alpha_starts_at_zero(self) -> None:
        assert Dice(3).alpha.tolist() == [0.0, 0.0, 0.0]
