"""Two small runs, with and without sequences, and jobs of one or two ranks that train them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launching import Job
from small_runs import DEEPFM, DIN


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
