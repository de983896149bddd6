"""The shipped presets, found without importing anything heavy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from embtables.registry import nearest


def recipe_folder() -> Path:
    """Return the folder of the shipped presets."""
    spec = find_spec("recipes")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def recipe_names() -> list[str]:
    """Return the names of the shipped presets, such as ``criteo_kaggle/dlrm``."""
    root = recipe_folder()
    return sorted(
        file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml")
    )


def find_recipe(recipe: str) -> tuple[str, Path]:
    """Return (name, YAML file) of a recipe name or of the path of a file.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    path = Path(recipe)
    if path.is_file():
        return path.stem, path
    files = [str(file) for file in path.parent.glob("*.y*ml")]
    if path.suffix in (".yaml", ".yml"):
        raise ValueError(f"{recipe}: no such file.{nearest(recipe, files)}".rstrip("."))
    known = recipe_names()
    if recipe not in known:
        raise ValueError(
            f"unknown recipe {recipe!r}.{nearest(recipe, [*known, *files])} "
            "List them with: embtables ls recipes (or give the path of a YAML file)"
        )
    return recipe, recipe_folder() / f"{recipe}.yaml"
