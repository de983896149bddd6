"""`embtables show`: the resolved configuration and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.cli.arguments import Overrides, Recipe

if TYPE_CHECKING:
    from trainer.config import Loaded


def show(
    recipe: Recipe,
    overrides: Overrides = None,
    plain: Annotated[bool, typer.Option("--plain", help="Leave the origins out.")] = False,
) -> None:
    """Print the whole configuration of a recipe as YAML, defaults included.

    Examples:
        embtables show synthetic/autoint
        embtables show frappe_x1/deepfm table=hash+int8 ratio=0.1
        embtables show criteo_kaggle/dlrm --plain > mine.yaml
    """
    import yaml

    from trainer.config import load_config

    loaded = load_config(recipe, overrides or ())
    config = loaded.config.plain()
    if plain:
        typer.echo(yaml.safe_dump(config, sort_keys=False).rstrip())
    else:
        for line in with_origins(loaded, config):
            typer.echo(line)


def with_origins(loaded: Loaded, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield YAML lines; a value that the recipe or the command line set says so."""
    lines = list(_lines(config, ()))
    width = min(max(len(text) for _, text in lines), 60)
    for path, text in lines:
        origin = _origin(loaded, path)
        yield f"{text:{width}}  # {origin}" if origin else text


def _lines(
    tree: Mapping[str, Any], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
    import yaml

    for key, value in tree.items():
        path, indent = (*above, str(key)), "  " * len(above)
        if isinstance(value, Mapping) and value:
            yield (), f"{indent}{key}:"
            yield from _lines(value, path)
        else:
            flow = yaml.safe_dump(value, default_flow_style=True, width=10_000)
            yield path, f"{indent}{key}: {flow.removesuffix(chr(10)).removesuffix('...').strip()}"


def _origin(loaded: Loaded, path: tuple[str, ...]) -> str:
    if not path:
        return ""
    heads = [path[:length] for length in range(1, len(path) + 1)]
    if any(head in loaded.overridden for head in heads):
        return "command line"
    node: Any = loaded.preset
    for key in path:
        if not isinstance(node, Mapping):
            return "preset"
        if key not in node:
            return "default"
        node = node[key]
    return "preset"
