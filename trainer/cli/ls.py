"""`embtables ls`: what there is, read from the files without importing them."""

from __future__ import annotations

from typing import Annotated

import typer

PACKAGES = {
    "sharing": "embtables.sharing",
    "width": "embtables.width",
    "precision": "embtables.precision",
    "models": "models",
    "datasets": "data",
}
TOPICS = (*PACKAGES, "recipes")


def ls(
    topic: Annotated[str, typer.Argument(help=f"One of: {', '.join(TOPICS)}.")] = "",
) -> None:
    """List methods, models, data sets and recipes, each with one line.

    Examples:
        embtables ls
        embtables ls sharing
        embtables ls recipes
    """
    from embtables.registry import nearest

    if topic and topic not in TOPICS:
        raise ValueError(
            f"unknown topic {topic!r}.{nearest(topic, TOPICS)} Known: {', '.join(TOPICS)}"
        )
    for name in [topic] if topic else TOPICS:
        lines = descriptions(name)
        if not topic:
            typer.secho(name, bold=True)
        width = max(map(len, lines), default=0)
        for kind, line in lines.items():
            typer.echo(f"{'' if topic else '  '}{kind:{width}}  {line}".rstrip())


def descriptions(topic: str) -> dict[str, str]:
    """Return name -> one line."""
    from embtables.registry import Registry
    from trainer.recipes import recipe_folder, recipe_names

    if topic != "recipes":
        return Registry(PACKAGES[topic], topic).descriptions()
    root = recipe_folder()
    texts = {name: (root / f"{name}.yaml").read_text() for name in recipe_names()}
    return {name: text.partition("\n")[0].lstrip("# ") for name, text in texts.items()}
