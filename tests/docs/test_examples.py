"""What the README and the pages say to type is run, not believed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pages import PAGES, ROOT, commands_of, files_of, name_of, python_of

from trainer.cli import app, main
from trainer.config import load_config

STARTED, OWN_DATA, PREDICTION = (
    ROOT / "docs" / f"{name}.md" for name in ("getting-started", "own-data", "prediction")
)
COMMANDS = [(page, line) for page in PAGES for line in commands_of(page)]


def of(start: str | tuple[str, ...]) -> Any:
    """Parametrize over the commands that begin so, each with its page."""
    found = [(page, line) for page, line in COMMANDS if line.startswith(start)]
    names = [f"{name_of(page)}: {line}" for page, line in found]
    return pytest.mark.parametrize(("page", "line"), found, ids=names)


def lay_out(page: Path, folder: Path) -> None:
    for name, text in files_of(page).items():
        (folder / name).write_text(text)


def parse(line: str) -> dict[str, Any]:
    """Return the arguments of a command, under torchrun or not, as its verb gets them."""
    verb, *words = shlex.split(line.rpartition("-m trainer.cli ")[2].removeprefix("embtables "))
    group = typer.main.get_group(app)
    command = group.get_command(typer.Context(group), verb)
    assert command is not None, f"no such verb: {verb}"
    return command.make_context(verb, words).params


def run_python(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", python_of(page)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def run_command(line: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(shlex.split(line)[1:])
    assert leaving.value.code == 0


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page))
        for page in PAGES
        if python_of(page) and page != PREDICTION
    ],
)
def test_python_runs(page: Path, tmp_path: Path) -> None:
    lay_out(page, tmp_path)
    done = run_python(page, tmp_path)
    if promised := re.search(r"uncompressed=(\d+)", python_of(page)):
        assert f"uncompressed={promised[1]})" in done.stdout
        inference = re.search(r"inference=(\d+)", done.stdout)
        assert inference
        assert int(inference[1]) <= 4_000_000
        assert (tmp_path / "tables.safetensors").exists()


def test_prediction_page_runs_on_the_data_of_another(tmp_path: Path, monkeypatch: Any) -> None:
    lay_out(OWN_DATA, tmp_path)
    monkeypatch.chdir(tmp_path)
    run_command("embtables train events.yaml --run-dir runs/RUN")
    (tmp_path / "events.csv").rename("rows.csv")
    for line in commands_of(PREDICTION):
        if line.startswith("embtables "):
            run_command(line)
    assert len((tmp_path / "scores.csv").read_text().split()) == 8  # a header, and seven rows
    assert run_python(PREDICTION, tmp_path).stdout.count("0.") == 2


def test_getting_started_runs_as_written(tmp_path: Path, monkeypatch: Any) -> None:
    lay_out(STARTED, tmp_path)
    run_python(STARTED, tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands_of(STARTED) if "shop.yaml" in line]
    assert len(lines) == 5
    for line in lines:
        run_command(line)


def test_commands_are_found() -> None:
    readme = commands_of(ROOT / "README.md")
    assert any(line.startswith("make demo") for line in readme)
    assert sum(line.startswith("embtables train") for line in readme) >= 2


@of("make ")
def test_make_target_exists(page: Path, line: str) -> None:
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@of("python -m ")
def test_module_exists(page: Path, line: str) -> None:
    module = line.split()[2].replace(".", "/")
    assert (ROOT / f"{module}.py").exists()


@of(("embtables ", "torchrun "))
def test_command_line_is_valid(page: Path, line: str, tmp_path: Path, monkeypatch: Any) -> None:
    given = parse(line)
    if "overrides" in given:
        lay_out(page, tmp_path)
        monkeypatch.chdir(tmp_path)
        assert load_config(given["recipe"], given["overrides"] or ()).name in given["recipe"]


@of("embtables ls")
def test_ls_runs(page: Path, line: str) -> None:
    run_command(line)


@of("embtables prepare")
def test_data_of_the_page_is_prepared(
    page: Path, line: str, tmp_path: Path, monkeypatch: Any
) -> None:
    if parse(line)["recipe"] not in files_of(page):
        pytest.skip("data that is not in the page")
    lay_out(page, tmp_path)
    if page == STARTED:
        run_python(page, tmp_path)  # writes the rows
    monkeypatch.chdir(tmp_path)
    run_command(line)
    assert list(tmp_path.glob("prepared/*/schema.json"))
