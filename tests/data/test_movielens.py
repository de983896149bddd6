"""MovieLens: three file forms, labels, joins, and what a bad file says."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from data.hashing import MISSING, string_keys
from data.movielens import GENRES, MovieLens, MovieLensConfig
from data.source import Chunk

RATINGS = [(1, 10, 5), (1, 20, 3), (2, 10, 1), (7, 30, 4), (7, 20, 2), (2, 30, 3)]
USERS = {1: ("F", "1", "10", "48067"), 2: ("M", "56", "16", "0123-A"), 7: ("M", "25", "3", "1")}
MOVIES = {
    10: ("Toy Story (1995)", ["Animation", "Comedy"]),
    20: ("Misérables, Les (1998)", ["Drama"]),
    30: ("Untitled", []),
}


def _write(path, lines, encoding="latin-1"):
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


def _ml1m(root):
    _write(root / "ratings.dat", [f"{u}::{m}::{r}::978300760" for u, m, r in RATINGS])
    _write(root / "users.dat", ["::".join([str(u), *cells]) for u, cells in USERS.items()])
    _write(
        root / "movies.dat", [f"{m}::{title}::{'|'.join(g)}" for m, (title, g) in MOVIES.items()]
    )


def _ml100k(root):
    _write(root / "u.data", [f"{u}\t{m}\t{r}\t881250949" for u, m, r in RATINGS])
    _write(root / "u.user", [f"{u}|{a}|{g}|{o}|{z}" for u, (g, a, o, z) in USERS.items()])
    flags = {m: ["01"[name in g] for name in GENRES] for m, (_, g) in MOVIES.items()}
    _write(
        root / "u.item",
        ["|".join([str(m), title, "01-Jan-1995", "", "http://x", *flags[m]])
         for m, (title, _) in MOVIES.items()],
    )  # fmt: skip


def _parquet(root):
    _ml1m(root)
    (root / "ratings.dat").unlink()
    pl.DataFrame(RATINGS, schema=["user", "item", "rating"], orient="row").write_parquet(
        root / "ratings.parquet"
    )


FORMS = {"ml1m": _ml1m, "ml100k": _ml100k, "parquet": _parquet}


def _read(root, **options) -> Chunk:
    (chunk,) = MovieLens(MovieLensConfig(root=root, **options)).chunks()
    return chunk


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, form):
    FORMS[form](tmp_path)
    chunk = _read(tmp_path, movie_features=True)
    kept = [(u, m, r) for u, m, r in RATINGS if r != 3]
    np.testing.assert_array_equal(chunk.label, [float(r >= 4) for _, _, r in kept])
    users = [u for u, _, _ in kept]
    expected = {
        "user_id": users,
        "movie_id": [m for _, m, _ in kept],
        "gender": string_keys([USERS[u][0] for u in users]),
        "age": [int(USERS[u][1]) for u in users],
        "occupation": string_keys([USERS[u][2] for u in users]),
        "zip": string_keys([USERS[u][3] for u in users]),
        "year": [{10: 1995, 20: 1998, 30: MISSING}[m] for _, m, _ in kept],
    }
    assert list(chunk.single) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(chunk.single[name], values, err_msg=name)
    values, lengths = chunk.jagged["genres"]
    np.testing.assert_array_equal(lengths, [len(MOVIES[m][1]) for _, m, _ in kept])
    np.testing.assert_array_equal(
        values, string_keys([g for _, m, _ in kept for g in MOVIES[m][1]])
    )
    np.testing.assert_array_equal(chunk.group, users)


def test_the_six_fields_need_no_movie_file(tmp_path):
    _ml1m(tmp_path)
    (tmp_path / "movies.dat").unlink()
    source = MovieLens(MovieLensConfig(root=tmp_path))
    assert [column.name for column in source.columns()] == [
        "user_id", "movie_id", "gender", "age", "occupation", "zip",
    ]  # fmt: skip
    (chunk,) = source.chunks()
    assert set(chunk.single) == {column.name for column in source.columns()}
    assert not chunk.jagged


def test_windows_line_ends_change_nothing(tmp_path):
    _ml1m(tmp_path)
    before = _read(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    after = _read(tmp_path)
    for name in before.single:
        np.testing.assert_array_equal(before.single[name], after.single[name])


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("ratings.dat", "1::10::5", r"ratings\.dat:7: expected 4 cells separated by '::'"),
        ("ratings.dat", "1::10::5::0::0", r"ratings\.dat:7: expected 4 cells"),
        ("ratings.dat", "1::30::6::0", r"ratings\.dat:7: .*a whole rating from 1 to 5, got '6'"),
        ("ratings.dat", "1::30::3.5::0", r"ratings\.dat:7: .*got '3\.5'"),
        ("ratings.dat", "9::10::5::0", r"ratings\.dat:7: .*an id of users\.dat, got '9'"),
        ("ratings.dat", "::10::5::0", r"ratings\.dat:7: .*'user_id'"),
        ("users.dat", "1::F::1::10::48067", r"users\.dat:4: .*no line before has, got '1'"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path, file, line, message):
    _ml1m(tmp_path)
    good = _read(tmp_path)
    with (tmp_path / file).open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        _read(tmp_path)
    source = MovieLens(MovieLensConfig(root=tmp_path, bad_rows="skip"))
    (chunk,) = source.chunks()
    np.testing.assert_array_equal(chunk.label, good.label)
    assert source.bad.count == 1


def test_an_empty_file_and_a_wrong_folder_say_so(tmp_path):
    with pytest.raises(ValueError, match=r"ratings\.dat or u\.data or ratings\.parquet"):
        _read(tmp_path)
    with pytest.raises(ValueError, match=r"data\.root is not given"):
        MovieLens(MovieLensConfig()).inputs()
    _ml1m(tmp_path)
    (tmp_path / "users.dat").write_text("")
    with pytest.raises(ValueError, match=r"users\.dat: the file is empty"):
        _read(tmp_path)
    pl.DataFrame({"user": [1]}).write_parquet(tmp_path / "ratings.parquet")
    _ml1m(tmp_path)
    (tmp_path / "ratings.dat").unlink()
    with pytest.raises(ValueError, match=r"Parquet with user, item and rating"):
        _read(tmp_path)
