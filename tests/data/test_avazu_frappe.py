from __future__ import annotations

import gzip

import pytest

from data.avazu import FIELDS, Avazu, AvazuConfig
from data.frappe_x1 import FIELDS as CONTEXT
from data.frappe_x1 import Frappe, FrappeConfig
from data.hashing import string_keys
from data.prepare import prepare
from data.store import Store

HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def avazu_line(number: int, hour: str) -> str:
    strings = [f"{number:x}{c}" for c in "abcdefghi"]
    cells = [
        f"{number}e19",
        number % 2,
        hour,
        1005,
        number,
        *strings,
        1,
        0,
        *range(number, number + 8),
    ]
    return ",".join(map(str, cells))


def avazu(folder, **options) -> Avazu:
    return Avazu(AvazuConfig(root=folder, store=folder / "store", **options))


def test_avazu(tmp_path):
    # 21 October 2014 was a Tuesday.
    hours = ["14102100", "14102123", "14102205", "14102206"]
    lines = [HEADER, *(avazu_line(n, hour) for n, hour in enumerate(hours, 1))]
    (tmp_path / "train.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    store = Store.open(prepare(avazu(tmp_path, vocabulary="open")))
    assert store.schema.rows == {"train": 2, "valid": 1, "test": 1}
    assert tuple(column.name for column in store.schema.fields) == FIELDS
    ids = {split: store.split(split).ids.T for split in ("train", "test")}
    at = {name: i for i, name in enumerate(FIELDS)}
    assert ids["train"][at["hour"]].tolist() == [0, 23]
    assert ids["train"][at["weekday"]].tolist() == [2, 2]
    assert ids["test"][at["hour"]].tolist() == [6]
    assert ids["test"][at["weekday"]].tolist() == [3]
    assert ids["train"][at["site_id"]].tolist() == string_keys(["1a", "2a"]).tolist()
    assert ids["train"][at["device_model"]].tolist() == string_keys(["1i", "2i"]).tolist()
    assert ids["train"][at["banner_pos"]].tolist() == [1, 2]
    assert ids["train"][at["C21"]].tolist() == [8, 9]
    assert store.split("train").label.tolist() == [1, 0]


@pytest.mark.parametrize("hour", ["14102124", "1410210", "14133100", ""])
def test_avazu_bad_hour(tmp_path, hour):
    (tmp_path / "train.csv").write_text("\n".join([HEADER, avazu_line(1, hour)]))
    with pytest.raises(ValueError, match=r"train.csv:2: column 'hour': expected an hour YYMMDDHH"):
        prepare(avazu(tmp_path))


def test_frappe(tmp_path):
    parts = {"train": [1, 2, 2, 1, 1], "valid": [2, 3], "test": [1]}
    for split, values in parts.items():
        lines = [",".join(["label", *CONTEXT])]
        lines += [",".join(map(str, [v % 2, *range(v, v + 10)])) for v in values]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    source = Frappe(FrappeConfig(root=tmp_path, store=tmp_path / "store"))
    store = Store.open(prepare(source))
    assert store.schema.rows == {"train": 5, "valid": 2, "test": 1}
    assert store.split("train").ids.T.tolist() == [[1, 2, 2, 1, 1]] * 10
    assert store.split("valid").ids.T.tolist() == [[2, 0]] * 10
    assert store.split("test").label.tolist() == [1]
    assert store.keys("item").tolist() == [0, 2, 3]
    assert store.schema.numeric == ()
    (tmp_path / "valid.csv").unlink()
    with pytest.raises(ValueError, match=r"valid.csv: no such file"):
        source.inputs()
