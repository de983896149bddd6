"""Arguments that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str, typer.Argument(help="Name of a recipe (embtables ls recipes), or path of a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Such as table=hash+int8 train.epochs=3."),
]
Run = Annotated[Path, typer.Argument(help="Directory of a finished run.")]
