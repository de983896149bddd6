"""The command `embtables`: one file a verb, and nothing heavy imported before a verb needs it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from trainer.cli import advise, export, ls, predict, prepare, report, show, sweep, train
from trainer.cli import eval as evaluate
from trainer.memory import keep_freed_memory

app = typer.Typer(
    name="embtables",
    help="Recommender embedding tables under a byte budget: any compressor below any CTR model.",
    epilog="Start with: embtables ls recipes, then embtables train synthetic/autoint --dry-run",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("ls")(ls.ls)
app.command("show")(show.show)
app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("sweep")(sweep.sweep)
app.command("advise")(advise.advise)
app.command("eval")(evaluate.evaluate)
app.command("export")(export.export)
app.command("predict")(predict.predict)
app.command("report")(report.report)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"embtables {version('embtables')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="EMBTABLES_DEBUG", help="Show the traceback of an error."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Hold what all verbs share."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 the user's mistake, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("EMBTABLES_DEBUG", "") not in ("", "0")
    given = [argument for argument in given if argument != "--debug"]
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr, force=True)
    for name in ("embtables", "data"):
        logging.getLogger(name).setLevel(logging.INFO)
    keep_freed_memory()
    try:
        app(given, prog_name="embtables")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SystemExit as leaving:  # as typer ends a command, interrupted or not
        if isinstance(leaving.code, int) and leaving.code:
            _leave_job(leaving.code)
        raise
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        _leave_job(2)
        raise SystemExit(2) from None
    raise SystemExit(0)


def _leave_job(code: int) -> None:
    """End a rank of a torchrun job at once: TorchRec's modules, still alive, would abort it."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
