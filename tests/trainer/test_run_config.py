"""The configuration: every problem at once, in the user's words, and every recipe valid."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trainer.config import RunConfig, load_config, load_data_config
from trainer.overrides import differences, parse_override, read_yaml
from trainer.recipes import find_recipe, recipe_names
from trainer.validation import ConfigError, validate

RECIPE = "frappe_x1/deepfm"

PROMISED = {
    *(f"frappe_x1/{m}" for m in ["lr", "fm", "deepfm", "dcnv2", "dlrm", "autoint", "autoint_plus"]),
    *(f"criteo_kaggle/{m}" for m in ["autoint", "dlrm", "dcnv2", "deepfm"]),
    "movielens_1m/dcnv2",
    "criteo_tb/dlrm",
    "avazu/autoint",
    "amazon/din",
    "gowalla/mf",
    "synthetic/autoint",
}


def test_all_promised_recipes_are_shipped() -> None:
    assert set(recipe_names()) >= PROMISED


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_validates_and_says_how_to_run_it(name: str) -> None:
    config = load_config(name).config
    text = find_recipe(name)[1].read_text()
    assert text.startswith("# ")
    assert f"# command : embtables train {name}" in text
    assert "# expect  :" in text
    assert RunConfig.model_validate(config.plain()) == config


def strings(tree: object) -> list[str]:
    if isinstance(tree, dict):
        return [text for value in tree.values() for text in strings(value)]
    if isinstance(tree, list):
        return [text for value in tree for text in strings(value)]
    return [tree] if isinstance(tree, str) else []


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_holds_no_number_that_plain_yaml_reads_as_text(name: str) -> None:
    for text in strings(yaml.safe_load(find_recipe(name)[1].read_text())):
        with pytest.raises(ValueError, match="could not convert"):
            float(text)


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(RECIPE, overrides)
    head, *lines = str(caught.value).splitlines()
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    assert head == f"{RECIPE}: {count}"
    return [line.strip() for line in lines]


def test_every_problem_is_reported_at_once_with_the_nearest_name() -> None:
    lines = problems(
        "train.batch_size=many",
        "train.epoch=3",
        "data.rot=x",
        "model.drop=0.5",
        "trian.epochs=3",
        "dense.kind=adm",
        "train.monitor=acu",
        "budget=10XB",
        "fields.item=hsh",
    )
    text = "\n".join(lines)
    assert len(lines) == 9
    assert "train.batch_size: expected a whole number" in text
    assert "(got 'many')" in text
    assert 'train.epoch: unknown key. Did you mean "epochs"?' in text
    assert 'data.rot: unknown key. Did you mean "root"?' in text
    assert "model.drop: unknown key." in text
    assert 'trian: unknown key. Did you mean "train"?' in text
    assert 'dense.kind: unknown kind "adm". Did you mean "adam"?' in text
    assert (
        "train.monitor: expected 'auc', 'logloss', 'gauc', 'recall' or 'ndcg' (got 'acu')" in text
    )
    assert "budget: '10XB' is not a size" in text
    assert "fields.item: unknown method 'hsh'" in text
    assert 'Did you mean "hash"?' in text


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.batch_size=big", "train.batch_size: expected a whole number (got 'big')"),
        ("train.epochs=1.5", "train.epochs: expected a whole number (got 1.5)"),
        ("ratio=10%", "ratio: expected a number, such as 0.1 (got '10%')"),
        ("log.to=jsonl", "log.to: expected a list, such as log.to=[jsonl] (got 'jsonl')"),
    ],
)
def test_values_of_another_type(override: str, line: str) -> None:
    assert problems(override) == [line]


def test_columns_and_delimiters_of_text() -> None:
    options = {"files": ["a.tsv"], "columns": [{"name": "user", "kind": "categorical"}]}
    csv = {"data": {"kind": "csv", **options, "delimiter": r"\t"}, "model": {"kind": "lr"}}
    assert validate(RunConfig, csv, "x").data.model_dump()["delimiter"] == "\t"
    csv["data"] |= {"columns": ["user"], "delimiter": ";;"}
    with pytest.raises(ConfigError) as refused:
        validate(RunConfig, csv, "x")
    assert "data.columns.0: expected keys and values, such as {name: user}" in str(refused.value)
    assert "data.delimiter: string should have at most 1 character" in str(refused.value)


def test_a_key_of_another_section_is_shown_its_home() -> None:
    (line,) = problems("train.lr=0.1")
    assert line.startswith("train.lr: unknown key. Did you mean dense.lr or rows.lr?")


def test_options_of_a_method_are_checked() -> None:
    (line,) = problems("table=multiplex(lookup=2)")
    assert line.startswith("table.sharing: multiplex has no option 'lookup'. Did you mean")


def test_budget_and_ratio_together_are_refused() -> None:
    (line,) = problems("budget=1MB", "ratio=0.5")
    assert "choose one" in line


def test_unknown_backend() -> None:
    (line,) = problems("backend=refrence")
    assert 'Did you mean "reference"?' in line


def test_a_section_given_as_one_word() -> None:
    (line,) = problems("model=lr")
    assert line == "model: expected a section, such as model.kind=lr (got 'lr')"


def test_changing_a_kind_drops_what_only_the_old_one_knew() -> None:
    model = load_config(RECIPE, ["model.kind=dlrm"]).config.model
    assert (model.kind, model.dim) == ("dlrm", 10)
    assert model.model_dump()["dropout"] == 0.2
    rows = load_config(RECIPE, ["rows.kind=adagrad"]).config.rows
    assert (rows.kind, rows.lr) == ("adagrad", 1e-3)


def test_changing_a_kind_keeps_the_command_line_strict() -> None:
    (line,) = problems("model.kind=dlrm", "model.hidden=[3]")
    assert line.startswith("model.hidden: unknown key.")
    (line,) = problems("model.hidden=[3]", "model.kind=dlrm")
    assert line.startswith("model.hidden: unknown key.")


def test_a_text_is_not_changed_by_halves() -> None:
    with pytest.raises(ValueError, match=r"table is 'full' here.*give all of it: table="):
        load_config(RECIPE, ["table.sharing.kind=qr"])


def test_values_of_the_command_line() -> None:
    config = load_config(
        RECIPE,
        ["dense.lr=1e-4", "rows.lr=2E-3", "budget=10MiB", "train.clip_norm=null", "table=qr+int8"],
    ).config
    assert (config.dense.lr, config.rows.lr, config.budget) == (1e-4, 2e-3, 10 * 2**20)
    assert config.train.clip_norm is None
    assert str(config.table) == "qr+int8"


def test_malformed_override() -> None:
    with pytest.raises(ValueError, match="expected key=value"):
        parse_override("train.batch_size")
    with pytest.raises(ValueError, match="not readable as YAML"):
        parse_override("table={a")


@pytest.mark.parametrize("text", ["1e-3", "3e-4", "1E-3", "1e3", "1.5e-3", "-2e-1", ".5e1"])
def test_exponents_are_numbers(text: str) -> None:
    assert read_yaml(text, "here") == float(text)


@pytest.mark.parametrize("text", ["e3", "1e", "day_1", "3MB"])
def test_words_stay_words(text: str) -> None:
    assert read_yaml(text, "here") == text


def test_differences_name_path_and_both_values() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": [1]}
    new = {"a": {"b": 1, "c": 3}, "d": [1], "e": 5}
    assert differences(old, new) == ["a.c: 2 -> 3", "e: (absent) -> 5"]
    assert differences(old, old) == []


def test_a_misspelt_file_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("shop.yam", "shop.yml"):
        with pytest.raises(ValueError, match=r'Did you mean "shop\.yaml"'):
            load_config(name)


def test_recipe_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {kind: frappe_x1}\nmodel: {kind: lr}\n")
    loaded = load_config(str(file))
    assert (loaded.name, loaded.config.model.kind) == ("mine", "lr")


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match='Did you mean "frappe_x1/deepfm"'):
        load_config("frappe_x1/deepmf")
    with pytest.raises(ValueError, match="no such file"):
        load_config("nowhere/mine.yaml")


def test_data_config_of_a_source_alone() -> None:
    assert load_data_config("frappe_x1", ["data.min_count=2"]).kind == "frappe_x1"
    with pytest.raises(ConfigError, match=r"data.min_cuont: unknown key"):
        load_data_config("frappe_x1", ["data.min_cuont=2"])


def test_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError, match="data: required"):
        validate(RunConfig, {"model": {"kind": "lr"}}, "x")
    with pytest.raises(ConfigError, match=r"data\.kind: required"):
        validate(RunConfig, {"data": {"root": "x"}, "model": {"kind": "lr"}}, "x")


def test_an_optimizer_without_a_kind_is_the_usual_one() -> None:
    tree = {"data": {"kind": "synthetic"}, "model": {"kind": "lr"}}
    usual = validate(RunConfig, tree, "x")
    for name in ("rows", "dense"):
        config = validate(RunConfig, {**tree, name: {"lr": 0.5}}, "x")
        expected = getattr(usual, name).model_copy(update={"lr": 0.5})
        assert config == usual.model_copy(update={name: expected})


def test_a_size_of_the_command_line_replaces_the_presets(tmp_path: Path) -> None:
    preset = tmp_path / "sized.yaml"
    preset.write_text("data: {kind: synthetic}\nmodel: {kind: lr}\nratio: 0.1\n")
    config = load_config(str(preset), ["budget=1MB"]).config
    assert (config.budget, config.ratio) == (1_000_000, None)
    assert load_config(str(preset), ["ratio=0.2"]).config.ratio == 0.2
