"""What an exported directory predicts from raw rows is what evaluation saw, wherever it is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data.loader import Loader
from trainer.config import load_config
from trainer.datasets import open_store
from trainer.loop import train
from trainer.predict import ROWS, PackedModel, probabilities
from trainer.runs import export_run
from trainer.scores import write_scores

CRITEO = """
data: {kind: criteo, normalize: standard, min_count: 2, split: {kind: last_seventh}}
model: {kind: dlrm, dim: 4, bottom: [8], top: [8]}
"""
DECLARED = """
data:
  kind: csv
  files: [train.txt]
  split: {kind: last_seventh}
  columns:
    - {name: user, kind: categorical, vocabulary: open}
    - {name: item, kind: categorical, min_count: 2}
    - {name: price, kind: numeric, transform: log1p, normalize: minmax}
    - {name: tags, kind: multi, separator: "|"}
    - {name: history, kind: sequence, separator: "|", table: item, min_count: 2, max_length: 3}
model: {kind: deepfm, dim: 4, hidden: [8]}
"""
COMMON = """
rows: {kind: adam, lr: 0.05}
train: {batch_size: 64, epochs: 1}
"""


def criteo_rows(rng: np.random.Generator, rows: int) -> str:
    lines = []
    for _ in range(rows):
        numbers = [str(n) if n >= 0 else "" for n in rng.integers(-3, 40, 13)]
        ids = [f"{n:08x}" if n else "" for n in rng.integers(0, 30, 26)]
        lines.append("\t".join([str(rng.integers(2)), *numbers, *ids]))
    return "\n".join(lines) + "\n"


def declared_rows(rng: np.random.Generator, rows: int) -> str:
    lines = ["label,user,item,price,tags,history"]
    for _ in range(rows):
        tags, history = (
            "|".join(f"{kind}{n}" for n in rng.integers(0, 20, rng.integers(0, 6))) for kind in "ti"
        )
        price = rng.choice(["", f"{rng.gamma(2):.3f}"])
        user, item = rng.integers(0, 50, 2)
        lines.append(f"{rng.integers(2)},u{user},i{item},{price},{tags},{history}")
    return "\n".join(lines) + "\n"


FORMS = {"criteo": (CRITEO, criteo_rows), "declared": (DECLARED, declared_rows)}


@dataclass
class Trained:
    run: Path
    folder: Path
    test: str
    scores: np.ndarray


def trained(folder: Path, form: str, *overrides: str) -> Trained:
    """Train on 700 rows; return the run, the 50 test rows as text, and what evaluation says of them."""
    recipe, make = FORMS[form]
    raw, run = folder / "raw", folder / "run"
    raw.mkdir()
    text = make(np.random.default_rng(0), 700)
    (raw / "train.txt").write_text(text)
    (folder / "recipe.yaml").write_text(recipe + COMMON)
    place = (f"data.root={raw}", f"data.store={folder / 'prepared'}")
    config = load_config(str(folder / "recipe.yaml"), (*place, *overrides)).config
    train(config, run)
    model = PackedModel.load(run / "model.safetensors")
    logits = [model(batch) for batch in Loader(open_store(config), "test", ROWS, prefetch=0)]
    header, *lines = text.splitlines(keepends=True)
    test = "".join(([header] if form == "declared" else []) + lines[-50:])
    return Trained(run, folder, test, np.concatenate(list(map(probabilities, logits))))


def moved(found: Trained) -> Path:
    """Export, copy the directory, and throw everything else away."""
    export_run(found.run, found.folder / "packed")
    for gone in ("raw", "prepared", "run"):
        shutil.rmtree(found.folder / gone)
    return (found.folder / "packed").rename(found.folder / "elsewhere")


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("declared"), "declared", "table=hash")


@pytest.fixture
def packed(declared: Trained, tmp_path: Path) -> Path:
    export_run(declared.run, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize(
    ("form", "table"),
    [
        ("criteo", "full"),
        ("criteo", "hash+int8"),
        ("criteo", "graphhash+fp16"),
        ("declared", "multiplex(lookups=2)"),
        ("declared", "double_hash+mde+int8"),
    ],
)
def test_scores_are_those_of_evaluation(tmp_path: Path, form: str, table: str) -> None:
    size = [] if table == "full" else ["ratio=0.6"]
    found = trained(tmp_path, form, f"table={table}", *size)
    (tmp_path / "rows.txt").write_text(found.test)
    packed = moved(found)
    assert len(found.scores) == 50
    assert len(np.unique(found.scores)) > 40
    got = np.concatenate(list(PackedModel.load(packed).predict_file(tmp_path / "rows.txt")))
    np.testing.assert_array_equal(got, found.scores)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_outputs_hold_every_bit(
    declared: Trained, packed: Path, tmp_path: Path, ending: str
) -> None:
    (tmp_path / "rows.csv").write_text(declared.test)
    out = tmp_path / f"scores{ending}"
    assert write_scores(packed, tmp_path / "rows.csv", out) == 50
    read = pl.read_parquet if ending == ".parquet" else pl.read_csv
    scores = read(out)
    assert scores.columns == ["score"]
    assert scores["score"].to_numpy().tolist() == declared.scores.tolist()
    assert {path.name for path in tmp_path.iterdir()} == {"packed", "rows.csv", out.name}


def test_no_rows_give_no_scores(declared: Trained, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(declared.test.partition("\n")[0])
    for name in ("scores.csv", "scores.parquet"):
        assert write_scores(packed, tmp_path / "rows.csv", tmp_path / name) == 0
    assert (tmp_path / "scores.csv").read_text() == "score\n"
    assert pl.read_parquet(tmp_path / "scores.parquet").schema == {"score": pl.Float64}


def test_a_bad_row_leaves_an_old_output_alone(
    declared: Trained, packed: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(declared.test + "u1,i1,cheap,,\n")
    (tmp_path / "scores.csv").write_text("old")
    with pytest.raises(ValueError, match=r"rows.csv:52: expected 6 columns, got 5"):
        write_scores(packed, tmp_path / "rows.csv", tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"packed", "rows.csv", "scores.csv"}
    with pytest.raises(ValueError, match=r"scores.txt: expected a name that ends in .csv, .tsv"):
        write_scores(packed, tmp_path / "rows.csv", tmp_path / "scores.txt")
    with pytest.raises(ValueError, match=r"there is no folder .*/new; make it first"):
        write_scores(packed, tmp_path / "rows.csv", tmp_path / "new" / "scores.csv")
    with pytest.raises(ValueError, match="a folder; give one file"):
        write_scores(packed, tmp_path, tmp_path / "scores.csv")


def test_standard_output_has_nothing_but_scores(
    declared: Trained, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text(declared.test)
    assert write_scores(packed, tmp_path / "rows.csv", None) == 50
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], list(map(float, lines[1:]))) == ("score", declared.scores.tolist())
    (tmp_path / "rows.csv").write_text("neither\n1\n")
    with pytest.raises(ValueError, match=r"rows.csv"):
        write_scores(packed, tmp_path / "rows.csv", None)
    assert capsys.readouterr().out == ""


def test_a_frame_gives_what_a_file_gives(declared: Trained, packed: Path) -> None:
    model = PackedModel.load(packed)
    frame = pl.read_csv(declared.test.encode())
    for rows in (frame, frame.to_pandas(), frame.to_dict(as_series=False)):
        np.testing.assert_array_equal(model.predict(rows), declared.scores)
    one = [model.predict(frame[at]).item() for at in range(len(frame))]
    assert one == pytest.approx(declared.scores.tolist(), rel=1e-6)
    unseen = {"user": ["x"], "item": [None], "price": [3], "tags": [["?"]], "history": ["? ?"]}
    (score,) = model.predict(unseen)
    assert 0 < score < 1


def test_the_same_run_gives_the_same_bytes_again(
    declared: Trained, packed: Path, tmp_path: Path
) -> None:
    first = {path.name: path.read_bytes() for path in packed.iterdir()}
    export_run(declared.run, packed)
    assert {path.name: path.read_bytes() for path in packed.iterdir()} == first
    assert set(first) == {
        "model.safetensors", "encoder.json", "vocabulary.safetensors", "checksums.json",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"raw exists and is no exported model: choose another"):
        export_run(declared.run, declared.folder / "raw")


def test_sizes_are_told_apart(declared: Trained, tmp_path: Path) -> None:
    size = export_run(declared.run, tmp_path / "packed")
    model = PackedModel.load(tmp_path / "packed")
    assert model.encoder is not None
    assert size.tables == model.tables.file_bytes
    assert size.network == 4 * sum(p.numel() for p in model.model.parameters())
    closed = [table for table in model.encoder.schema.tables if table.vocabulary == "closed"]
    assert [table.name for table in closed] == ["item", "tags"]
    assert size.vocabularies == 8 * sum(table.rows for table in closed)


def test_a_file_alone_reads_ids_only(declared: Trained) -> None:
    model = PackedModel.load(declared.run / "model.safetensors")
    with pytest.raises(ValueError, match=r"loaded from a file.*load a directory"):
        model.predict({"user": ["x"]})


@pytest.mark.parametrize(
    "name", ["model.safetensors", "encoder.json", "vocabulary.safetensors", "checksums.json"]
)
def test_damage_is_found(packed: Path, name: str) -> None:
    file = packed / name
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for broken in (whole[: len(whole) // 2], bytes(flipped)):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"is damaged.*copy the whole directory again"):
            PackedModel.load(packed)
    file.unlink()
    with pytest.raises(ValueError, match=r"is damaged|not an exported model"):
        PackedModel.load(packed)


def test_what_is_no_exported_model_is_refused(declared: Trained, tmp_path: Path) -> None:
    for path in (declared.run, tmp_path, tmp_path / "nothing", declared.folder / "prepared"):
        with pytest.raises(
            ValueError, match=r"not an exported model; write one with: embtables exp"
        ):
            PackedModel.load(path)
    (store,) = (declared.folder / "prepared").iterdir()
    with pytest.raises(ValueError, match="not an exported model"):
        PackedModel.load(store)
    with pytest.raises(ValueError, match="not an exported model"):
        PackedModel.load(declared.folder / "recipe.yaml")


def test_without_the_prepared_data_export_says_what_to_do(
    declared: Trained, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(declared.run, run)
    config = (run / "config.yaml").read_text()
    gone = config.replace(str(declared.folder / "prepared"), str(tmp_path / "gone"))
    (run / "config.yaml").write_text(gone)
    with pytest.raises(ValueError, match=r"are gone.*embtables prepare .*config.yaml") as caught:
        export_run(run, tmp_path / "packed")
    from trainer.config import load_data_config
    from trainer.datasets import prepared

    prepared(load_data_config(str(caught.value).split()[-1]))
    export_run(run, tmp_path / "packed")
