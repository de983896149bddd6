"""Two small runs, with and without sequences, and jobs of one or two ranks that train them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from launching import HERE, run
from small_runs import DEEPFM, DIN

Job = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return the maker of one run of a job: recipe, run directory, overrides, what else it has."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, text in {"din": DIN, "deepfm": DEEPFM}.items():
        (folder / f"{name}.yaml").write_text(text)

    def make(recipe: str, path: Path, *overrides: str, **rest: Any) -> dict[str, Any]:
        place = f"data.store={folder / 'prepared'}"
        return {
            "recipe": str(folder / f"{recipe}.yaml"),
            "overrides": [place, *overrides],
            "run": str(path),
            **rest,
        }

    return make


def command(folder: Path, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the arguments of a rank that does these runs, one after the other."""
    file = folder / "job.json"
    file.write_text(json.dumps(runs))
    return [str(HERE / "train_worker.py"), str(file)]


def train(folder: Path, runs: Sequence[dict[str, Any]], world: int) -> None:
    """Do runs on so many ranks, to their end."""
    run(command(folder, runs), world)
