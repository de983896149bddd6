"""How fast does a Criteo file become batches, and in how much memory, beside FuxiCTR?

    make bench-setup                                              (once: FuxiCTR's environment)
    python -m bench.data PATH [--rows 1000000] [--rounds 2]       (a file in the layout of Criteo)

Two files, of `--rows` lines and of twice as many, are made from PATH, its lines repeated where it has
too few. By turns, here and in FuxiCTR, each in a process of its own, the file is built into what can be
trained on, and a shuffled epoch of its training rows is loaded. Not counted are imports, FuxiCTR's Ray
processes and the form of file that it asks for. Batches a second are given over the whole epoch, and
after its first batch, for which FuxiCTR starts processes. Memory is that of all processes of a runner
together; of our loader it includes what is mapped of the files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.common import write_result
from data.text import open_text

PEERS = Path(__file__).parent / "peers"
RUNNERS = {
    "embtables": (Path(sys.executable), PEERS / "embtables_data.py"),
    "fuxictr": (Path(".venv-peers/fuxictr/bin/python"), PEERS / "fuxictr_data.py"),
}
PARTS = [0.8, 0.1, 0.1]


def run(runner: str, job: dict[str, Any]) -> dict[str, Any]:
    """Return a runner's answer to a job (see `bench.peers.fuxictr_data`), or why there is none."""
    python, script = RUNNERS[runner]
    if not python.exists():
        return {"failure": f"no {python}: run make bench-setup"}
    shutil.rmtree(job["work"], ignore_errors=True)
    Path(job["work"]).mkdir()
    file = Path(job["work"]) / "job.json"
    file.write_text(json.dumps(job))
    done = subprocess.run(
        [str(python), str(script), str(file)],
        capture_output=True,
        text=True,
        # FuxiCTR's environment must not see the packages of this folder.
        env={**os.environ, "PYTHONPATH": str(Path.cwd()) if runner == "embtables" else ""},
    )
    if done.returncode:
        return {"failure": (done.stderr.strip() or "no message").splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def lines_of(source: Path, target: Path, rows: int) -> int:
    """Write the first `rows` lines of a file, plain or gzip, again and again if it has fewer.

    Returns:
        How many different lines those are.
    """
    written = distinct = 0
    with target.open("wb") as out:
        while written < rows:
            with open_text(source) as lines:
                for line in itertools.islice(lines, rows - written):
                    out.write(line if line.endswith(b"\n") else line + b"\n")
                    written += 1
            distinct = distinct or written
    return distinct


def measure(rows: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what every runner took for a file of so many rows."""
    file = folder / "criteo.txt"
    distinct = lines_of(options.path, file, rows)
    job = {
        "input": str(file),
        "work": str(folder / "work"),
        "threads": options.threads,
        "batch_size": options.batch_size,
        "min_count": options.min_count,
        "parts": PARTS,
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNNERS}
    for turn, runner in itertools.product(range(options.rounds), RUNNERS):
        found[runner].append(run(runner, job))
        told = found[runner][-1]
        print(f"  {rows:,} rows, round {turn + 1}, {runner}: {told}", file=sys.stderr, flush=True)
    return {
        "rows": rows,
        "distinct_lines": distinct,
        "input_bytes": file.stat().st_size,
        "runners": {name: summarise(rows, rounds) for name, rounds in found.items()},
    }


def summarise(rows: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of a runner over its rounds, and the largest memory."""
    failures = [one["failure"] for one in rounds if "failure" in one]
    if failures:
        return {"failure": failures[0]}
    build = [one["build"]["seconds"] for one in rounds]
    epoch = [one["load"]["epoch_seconds"] for one in rounds]
    first = [one["load"]["first_batch_seconds"] for one in rounds]
    last = rounds[-1]
    batches = last["load"]["batches"]
    after_first = statistics.median(map(operator.sub, epoch, first))
    return {
        "build_seconds": statistics.median(build),
        "build_rows_per_second": round(rows / statistics.median(build)),
        "build_peak_bytes": max(one["build"]["peak_memory_bytes"] for one in rounds),
        "load_rows_per_second": round(last["load"]["rows"] / statistics.median(epoch)),
        "load_batches_per_second": round(batches / statistics.median(epoch), 1),
        "load_batches_per_second_after_first": round((batches - 1) / after_first, 1),
        "load_peak_bytes": max(one["load"]["peak_memory_bytes"] for one in rounds),
        "start_seconds": statistics.median(one["start"]["seconds"] for one in rounds),
        "rounds": {"build": build, "epoch": epoch, "first_batch": first},
        **{key: last[key] for key in ("rows", "vocabulary_rows", "output_bytes", "versions")},
    }


def print_table(sizes: list[dict[str, Any]]) -> None:
    """Print one line a size and runner."""
    print(f"{'rows':>12} {'runner':10} {'build s':>9} {'rows/s':>10} {'peak MB':>8}", end="")
    print(f" {'load rows/s':>12} {'batches/s':>10} {'after 1st':>10} {'peak MB':>8}")
    for size in sizes:
        ours = size["runners"]["embtables"]
        for name, one in size["runners"].items():
            head = f"{size['rows']:12,} {name:10}"
            if "failure" in one:
                print(f"{head} {one['failure']}")
                continue
            line = (
                f"{head} {one['build_seconds']:9.2f} {one['build_rows_per_second']:10,} "
                f"{one['build_peak_bytes'] / 1e6:8.0f} {one['load_rows_per_second']:12,} "
                f"{one['load_batches_per_second']:10,.0f} "
                f"{one['load_batches_per_second_after_first']:10,.0f} "
                f"{one['load_peak_bytes'] / 1e6:8.0f}"
            )
            if one is not ours and "failure" not in ours:
                builds = one["build_seconds"] / ours["build_seconds"]
                loads = ours["load_rows_per_second"] / one["load_rows_per_second"]
                line += f"   ours: {builds:.1f} x and {loads:.1f} x as fast"
            print(line)


def main() -> None:
    """Measure both sizes, print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="file of lines in the layout of Criteo")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the smaller file")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--min-count", type=int, default=2, help="rarer values share a row")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="scratch")
    parser.add_argument("--dry", action="store_true", help="write no file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work.resolve()) as folder:
        sizes = [measure(rows, options, Path(folder)) for rows in (options.rows, 2 * options.rows)]
    print_table(sizes)
    if not options.dry:
        settings = {"batch_size": options.batch_size, "min_count": options.min_count}
        write_result("data", {**settings, "sizes": sizes})


if __name__ == "__main__":
    main()
