"""Records of runs: what a sweep writes, and what a report reads.

One JSON file, free of paths, so that it can be kept and read where the runs are not.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from embtables.registry import Config

FILE = "results.json"
"""Name of the records in the directory of a sweep."""


class Record(Config):
    """One run, or why there is none."""

    cell: dict[str, Any] = Field(description="axis -> value, such as table -> hash")
    seed: int
    tuned: dict[str, Any] = Field(default={}, description="key -> value chosen on validation")
    summary: dict[str, Any] | None = Field(default=None, description="summary.json of the run")
    failure: str | None = Field(default=None, description="why there is no summary")
    fields: dict[str, Any] | None = Field(default=None, description="fields.json of the run")
    environment: dict[str, Any] = Field(
        default={}, description="what was not as in the environment of the records"
    )


class RowsError(Config):
    """How far other test rows would move the difference of two cells: known where the runs are."""

    metric: str
    cells: tuple[dict[str, Any], dict[str, Any]]
    seeds: list[int] = Field(description="of both, whose differences are averaged")
    error: float = Field(description="standard error (`trainer.significance`)")


class Records(Config):
    """Runs of one recipe, and what they have in common."""

    format: Literal[1] = 1
    name: str
    recipe: str
    config: dict[str, Any] = Field(description="configuration that the cells change, without paths")
    axes: dict[str, list[Any]] = Field(default={}, description="axis -> its values, in their order")
    tune: dict[str, list[Any]] = Field(default={}, description="key -> values tried in every cell")
    environment: dict[str, Any] = Field(default={}, description="versions and machine")
    bayes: dict[str, Any] | None = Field(
        default=None, description="split -> best possible metrics, of data with planted logits"
    )
    runs: list[Record]
    trials: list[Record] = Field(default=[], description="first seeds that `tuned` was chosen from")
    rows_errors: list[RowsError] = Field(default=[], description="of cells that were compared")

    def write(self, file: Path) -> None:
        """Write the records, a run a line; an old file is replaced only when the new one is whole."""
        head = self.model_dump_json(exclude={"runs"}, exclude_defaults=True)
        runs = ",\n".join(run.model_dump_json(exclude_defaults=True) for run in self.runs)
        temporary = file.with_name(f".{file.name}.part")
        temporary.write_text(f'{head.removesuffix("}")},\n"runs":[\n{runs}\n]}}\n')
        temporary.replace(file)


def read_records(path: Path) -> Records:
    """Return the records of a sweep's directory, of a file that a sweep wrote, or of one run.

    Raises:
        ValueError: it is none of these, or the run is not finished.
    """
    if (path / FILE).exists():
        path = path / FILE
    if path.is_file():
        try:
            return Records.model_validate_json(path.read_text())
        except ValidationError as error:
            raise ValueError(f"{path}: not the records of a sweep ({error})") from None
    if not (path / "config.yaml").exists():
        raise ValueError(
            f"{path}: neither a run nor a sweep; give a directory that embtables train or sweep "
            f"printed, or a {FILE}"
        )
    if not (path / "summary.json").exists():
        raise ValueError(f"{path}: not finished; the same embtables train command resumes it")
    config = yaml.safe_load((path / "config.yaml").read_text())
    summary = json.loads((path / "summary.json").read_text())
    environment = json.loads((path / "env.json").read_text())
    cell = {"table": summary["table"], "ratio": summary["ratio"], "budget": summary["budget"]}
    return Records(
        name=path.resolve().name,
        recipe=f"{config['data']['kind']}/{config['model']['kind']}",
        config=without_paths(config),
        environment=without_command(environment),
        runs=[
            Record(
                cell={key: value for key, value in cell.items() if value is not None},
                seed=summary["seed"],
                summary=summary,
            )
        ],
    )


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain configuration without the places of its data, which say nothing elsewhere."""
    data = {key: value for key, value in config["data"].items() if key not in ("root", "store")}
    return {**config, "data": data}


def without_command(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return an environment without its command line, which names paths."""
    return {key: value for key, value in environment.items() if key != "command"}


def differing(own: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an environment is not as usual."""
    return {key: value for key, value in own.items() if value != usual.get(key)}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation and the values themselves."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": spread, "values": list(values)}


def spread_text(metric: Mapping[str, Any] | None) -> str:
    """Return "mean ±deviation"."""
    if metric is None:
        return "-"
    spread = "" if metric["std"] is None else f" ±{metric['std']:.5f}"
    return f"{metric['mean']:.5f}{spread}"
