"""Amazon reviews: the sample recipe of DIN against a plain Python reference, and both file forms."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from data import amazon
from data.amazon import Amazon, AmazonConfig, collect, draw_negatives
from data.hashing import MISSING, string_keys

TRAIN, VALID, TEST = range(3)

# user -> items in time order; user 4 has a single review and gives no rows.
LISTS = {3: [5, 6, 7, 8, 9], 1: [9, 5, 11], 2: [6, 12], 4: [10]}
CATEGORY = {5: 50, 6: 60, 7: 50, 8: 60, 9: 70, 10: 50, 12: 90}


def _write_lists(root):
    lines = [" ".join(map(str, [user, *items])) for user, items in LISTS.items()]
    (root / "Toys.txt").write_text("\n".join(lines) + "\n")
    attributes = {str(item): [1, 2, category] for item, category in CATEGORY.items()}
    (root / "Toys_item2attributes.json").write_text(json.dumps({**attributes, "11": []}))


def _write_json(root, *, literal=True, zipped=False):
    """The same reviews as JSON lines, shuffled, with metadata as Python literals or as JSON."""
    reviews = [
        {"reviewerID": f"U{user}", "asin": f"B{item}", "unixReviewTime": 1000 + at, "text": 'a "b"'}
        for user, items in LISTS.items()
        for at, item in enumerate(items)
    ]
    reviews = reviews[::-1]
    metadata = [
        {"asin": f"B{item}", "title": "Men's", "categories": [["Toys"], ["Toys", f"c{category}"]]}
        for item, category in [*CATEGORY.items(), (99, 99)]
    ]
    texts = {
        "reviews_Toys_5.json": [json.dumps(review) for review in reviews],
        "meta_Toys.json": [repr(item) if literal else json.dumps(item) for item in metadata],
    }
    for name, lines in texts.items():
        data = "".join(f"{line}\n" for line in lines).encode()
        if zipped:
            (root / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (root / name).write_bytes(data)


def _rows(root, **options):
    """All rows as Python tuples: user, label, item, category, histories, split."""
    rows = []
    for chunk in Amazon(AmazonConfig(root=root, **options)).chunks():
        (items, lengths), (categories, same) = chunk.jagged.values()
        np.testing.assert_array_equal(lengths, same)
        assert chunk.group is not None
        assert chunk.split is not None
        cuts = np.cumsum(lengths)[:-1]
        columns = (
            chunk.group.tolist(),
            chunk.label.tolist(),
            chunk.single["item"].tolist(),
            chunk.single["category"].tolist(),
            [part.tolist() for part in np.split(items, cuts)],
            [part.tolist() for part in np.split(categories, cuts)],
            chunk.split.tolist(),
        )
        rows += zip(*columns, strict=True)
    return rows


@pytest.mark.parametrize("max_length", [2, 100])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_rows_follow_the_recipe(tmp_path, monkeypatch, max_length, block):
    monkeypatch.setattr(amazon, "CHUNK", block)
    _write_lists(tmp_path)
    rows = _rows(tmp_path, max_length=max_length)
    expected = []
    for user in sorted(LISTS):
        items = LISTS[user]
        for at in range(1, len(items)):
            history = items[max(0, at - max_length) : at]
            past = [CATEGORY.get(item, MISSING) for item in history]
            split = {len(items) - 1: TEST, len(items) - 2: VALID}.get(at, TRAIN)
            expected += [(user, label, items[at], history, past, split) for label in (1, 0)]
    assert len(rows) == len(expected) == 2 * (4 + 2 + 1)
    for row, (user, label, item, history, past, split) in zip(rows, expected, strict=True):
        assert row[:2] == (user, label)
        assert row[4:] == (history, past, split)
        assert row[3] == CATEGORY.get(row[2], MISSING)
        assert row[2] == item if label else row[2] not in LISTS[user]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("literal", [False, True])
def test_json_lines_give_the_rows_of_the_list_form(tmp_path, literal, zipped):
    _write_json(tmp_path, literal=literal, zipped=zipped)
    rows = _rows(tmp_path)
    (tmp_path / "lists").mkdir()
    _write_lists(tmp_path / "lists")

    def users(number):
        return int(string_keys([f"U{number}"])[0])

    def items(number):
        return int(string_keys([f"B{number}"])[0])

    def categories(number):
        return number if number == MISSING else int(string_keys([f"c{number}"])[0])

    # Negatives are drawn from the items in another order: compare the clicks.
    clicks = sorted(row for row in rows if row[1] == 1)
    assert clicks == sorted(
        (
            users(user), label, items(item), categories(category),
            [items(i) for i in past], [categories(c) for c in past_categories], split,
        )
        for user, label, item, category, past, past_categories, split in _rows(tmp_path / "lists")
        if label == 1
    )  # fmt: skip
    names = {items(i): i for row in LISTS.values() for i in row}
    owner = {users(user): user for user in LISTS}
    for row in rows:
        if row[1] == 0:
            assert names[row[2]] not in LISTS[owner[row[0]]]


def _random_reviews(users, items, seed):
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, items + 1)
    lengths = rng.integers(2, 12, users)
    chosen = [rng.choice(items, n, replace=False, p=weights / weights.sum()) for n in lengths]
    return collect(np.repeat(np.arange(users), lengths), np.concatenate(chosen), {})


def _chi_square(observed, expected):
    """Chi-square in standard deviations from its mean (5 or more expected a cell)."""
    freedom = len(observed) - 1
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("how", ["uniform", "frequency"])
def test_negatives_are_never_reviewed_and_follow_their_law(how):
    reviews = _random_reviews(users=4000, items=60, seed=1)
    negative = draw_negatives(reviews, how, seed=3)
    used = np.zeros((4000, 60), bool)
    used[reviews.user, reviews.item] = True
    drawn = reviews.before > 0
    assert not used[reviews.user[drawn], negative[drawn]].any()
    weight = np.ones(60)
    if how == "frequency":
        last = np.repeat(reviews.starts[1:], np.diff(reviews.starts))
        train = np.arange(len(reviews.item)) < last - 2
        weight = np.bincount(reviews.item[train], minlength=60)
    # Given that used items are redrawn, each draw has the law of the user's unused items.
    law = np.where(used, 0, weight)
    law = law / law.sum(1, keepdims=True)
    expected = law[reviews.user[drawn]].sum(0)
    observed = np.bincount(negative[drawn], minlength=60)
    assert abs(_chi_square(observed, expected)) < 4
    assert _chi_square(observed[::-1], expected) > 40 or how == "uniform"


def test_negatives_depend_on_the_seed_alone():
    reviews = _random_reviews(users=50, items=40, seed=2)
    one, same, other = (draw_negatives(reviews, "uniform", seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_user_of_every_item_is_an_error_and_not_an_endless_search():
    reviews = collect(np.array([1, 1, 1, 2, 2]), np.array([7, 8, 9, 7, 8]), {})
    with pytest.raises(ValueError, match=r"1 users .* reviewed all of the 3 items"):
        draw_negatives(reviews, "uniform", 0)


def test_columns_share_tables_and_the_split_is_the_sources(tmp_path):
    _write_lists(tmp_path)
    source = Amazon(AmazonConfig(root=tmp_path, max_length=7))
    columns = {column.name: column for column in source.columns()}
    assert columns["item_history"].table_name == columns["item"].table_name
    assert columns["category_history"].table_name == columns["category"].table_name
    assert columns["item_history"].max_length == 7
    assert source.config.split.kind == "fixed"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5 6 x", r"Toys\.txt:5: .*user item item"),
        ("5", r"Toys\.txt:5: "),
        ("5  6", r"Toys\.txt:5: "),
    ],
)
def test_a_bad_list_is_named_or_skipped(tmp_path, line, message):
    _write_lists(tmp_path)
    good = _rows(tmp_path)
    with (tmp_path / "Toys.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        _rows(tmp_path)
    assert _rows(tmp_path, bad_rows="skip") == good


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("reviews_Toys_5.json", '{"reviewerID": "U1", "asin": "B5", "unixRevi'),
        ("reviews_Toys_5.json", '{"reviewerID": "U1", "unixReviewTime": 3}'),
        ("meta_Toys.json", "{'asin': 'B11', 'categories': [[]]}"),
        ("meta_Toys.json", "{'asin': 'B11', 'categories': [['To"),
        ("meta_Toys.json", "{'title': 'no asin'}"),
    ],
)
def test_a_bad_object_is_named_or_skipped(tmp_path, file, line):
    _write_json(tmp_path)
    good = _rows(tmp_path)
    with (tmp_path / file).open("a") as handle:
        handle.write(line + "\n")
    number = (tmp_path / file).read_text().count("\n")
    with pytest.raises(ValueError, match=rf"{file}:{number}: "):
        _rows(tmp_path)
    assert _rows(tmp_path, bad_rows="skip") == good


def test_a_folder_of_several_categories_needs_a_choice(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected a folder that holds reviews_<category>_5\.json"
    ):
        Amazon(AmazonConfig(root=tmp_path)).inputs()
    _write_json(tmp_path)
    for name in ("reviews_Books_5.json", "meta_Books.json"):
        (tmp_path / name).write_text("{}\n")
    with pytest.raises(ValueError, match=r"holds Books, Toys: choose by data\.category"):
        Amazon(AmazonConfig(root=tmp_path)).inputs()
    with pytest.raises(ValueError, match=r'data\.category=Bok: .*Did you mean "Books"'):
        Amazon(AmazonConfig(root=tmp_path, category="Bok")).inputs()
    chosen = Amazon(AmazonConfig(root=tmp_path, category="Toys")).inputs()
    assert [path.name for path in chosen] == ["reviews_Toys_5.json", "meta_Toys.json"]
