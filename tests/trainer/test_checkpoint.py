"""Checkpoints: whole or not there, damage is seen before it is loaded, shards find their place."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer import checkpoint, storage
from trainer.checkpoint import Checkpoints
from trainer.config import RunConfig
from trainer.loop import train
from trainer.step import TrainStep

Tiny = Callable[..., RunConfig]


def written(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    """Checkpoints that hold their step."""
    checkpoints = Checkpoints(folder, "run", keep)
    for step in steps:
        checkpoints.save(step, {"step": torch.tensor(step)}, {"step": step})
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def latest_step(checkpoints: Checkpoints) -> int:
    """The step that is loaded by whoever resumes."""
    path = checkpoints.latest()
    assert path is not None
    values, tensors = checkpoints.values(path), checkpoints.load(path, {})
    assert int(tensors["step"]) == values["step"]
    return values["step"]


# -- what is stored ------------------------------------------------------------------------------


def test_round_trip_is_exact(tmp_path: Path) -> None:
    tensors = {
        "a/b": torch.randn(3, 2),
        "rng/cpu": torch.get_rng_state(),
        "number": torch.tensor(2**60),
        "transposed": torch.randn(3, 5).t(),
        "view": torch.randn(10, 4)[3:6],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(4, 5).bfloat16(),
        "code": torch.randint(-128, 127, (7, 3), dtype=torch.int8),
        "truth": torch.rand(7) > 0.5,
        "no rows": torch.empty(0, 4),
        "no columns": torch.empty(5, 0),
        "blocks": torch.randn(2**20, 5),
    }
    values = {"lr": 0.1, "best": None, "text": "ü"}
    checkpoints = Checkpoints(tmp_path / "x" / "checkpoints", "run")
    assert checkpoints.latest() is None
    path = checkpoints.save(7, tensors, values)
    assert path == checkpoints.latest() == tmp_path / "x" / "checkpoints" / "step-00000007"
    assert checkpoints.values(path) == values
    into = {"blocks": torch.zeros(2**20, 5), "transposed": torch.zeros(3, 5).t()}
    loaded = checkpoints.load(path, into)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert all(loaded[name].dtype == tensors[name].dtype for name in tensors)
    assert all(torch.equal(into[name], tensors[name]) for name in into)
    assert names(path) == ["0.bin", "content.json", "manifest.json"]
    assert (path / "0.bin").stat().st_size == sum(tensor.nbytes for tensor in tensors.values())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run")
    path = checkpoints.save(1, {"rows": torch.ones(3, 2)}, {})
    with pytest.raises(ValueError, match=r"step-00000001: holds no tensor 'other'.*--fresh"):
        checkpoints.load(path, {"other": torch.ones(1)})
    for wrong in (torch.ones(2, 3), torch.ones(3, 2).half()):
        with pytest.raises(ValueError, match=r"'rows' is float32\[3, 2\] there and float.*here"):
            checkpoints.load(path, {"rows": wrong})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_copy_of_a_table_is_made(tmp_path: Path) -> None:
    """The address space is limited to hold the table and half of another one."""
    code = """
import resource, sys
from pathlib import Path
import torch
from trainer.checkpoint import Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]), "run")
checkpoints.load(checkpoints.save(1, {"rows": torch.ones(2, 2)}, {}), {})  # all is imported
table = torch.arange(2 * 2**25, dtype=torch.float32).view(2, -1)[1]  # half of its storage
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + table.nbytes // 2, resource.RLIM_INFINITY))
path = checkpoints.save(2, {"rows": table}, {})
table.zero_()
checkpoints.load(path, {"rows": table})
assert table[0] == 2**25 and table[-1] == 2**26, table
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


# -- which are kept ------------------------------------------------------------------------------


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    assert names(written(tmp_path / "2", 5, 10, 15).folder) == ["step-00000010", "step-00000015"]
    assert names(written(tmp_path / "1", 5, 10, 15, keep=1).folder) == ["step-00000015"]


def test_the_best_one_is_kept_besides(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=1)
    best = checkpoints.name(1)
    for step in (1, 2, 3):
        assert checkpoints.save(step, {}, {}, best).name == f"step-0000000{step}"
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    checkpoints.save(4, {}, {}, checkpoints.name(4))
    assert names(tmp_path) == ["step-00000004"]


def test_whoever_goes_back_finds_the_best_of_then(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=2)
    for step, best in {1: 1, 2: 1, 3: 3}.items():
        checkpoints.save(step, {}, {}, f"step-0000000{best}")
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_name_is_never_used_twice(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 420, 420, keep=3)
    assert checkpoints.name(420) == "step-00000420.2"
    for _ in range(10):
        written(tmp_path, 420, keep=3)
    assert names(tmp_path) == ["step-00000420.10", "step-00000420.11", "step-00000420.9"]
    assert checkpoints.latest() == tmp_path / "step-00000420.11"
    assert latest_step(written(tmp_path, 10**9)) == 10**9


# -- killed --------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
import torch
from trainer.checkpoint import Checkpoints

torch.set_num_threads(1)
folder = Path(sys.argv[1])
Checkpoints(folder, "run").save(1, {"step": torch.tensor(1)}, {"step": 1})
Checkpoints(folder, "run").save(2, {"step": torch.tensor(2)}, {"step": 2})

def dies_at(call):
    left = call
    def counted(plain):
        def function(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return plain(*arguments, **options)
        return function
    os.fsync, os.mkdir, os.rename = counted(os.fsync), counted(os.mkdir), counted(os.rename)
    os.unlink, os.rmdir = counted(os.unlink), counted(os.rmdir)

step, call = 3, 1
while True:
    child = os.fork()
    if child == 0:
        dies_at(call)
        Checkpoints(folder, "run").save(step, {"step": torch.tensor(step)}, {"step": step})
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    checkpoints = Checkpoints(folder, "run")
    path = checkpoints.latest()
    found = checkpoints.values(path)["step"]
    assert int(checkpoints.load(path, {})["step"]) == found and step - 1 <= found <= step
    left = sorted(file.name for file in folder.iterdir())
    assert not any("part" in name for name in left), left
    print(call, found - step)
    if not killed:
        assert len(left) == 2, left
        break
    step, call = found + 1, call + 1
"""


def test_killed_at_any_moment_it_leaves_the_old_ones_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert found == sorted(found)
    assert found.count(-1) >= 5  # made, three files, their folder, renamed
    assert found.count(0) >= 5  # the folder of all, and while the oldest is removed


@pytest.mark.parametrize("call", range(1, 7))
def test_an_error_leaves_the_old_ones_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """In the tensors, their description, the manifest, the folder, the new name or the folder of all."""
    checkpoints = written(tmp_path, 1, 2)
    calls = iter(range(1, 100))

    def failing(plain: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            if next(calls) == call:
                raise RuntimeError("power cut")
            return plain(*arguments)

        return function

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", failing(storage.os.fsync))
        patch.setattr(Path, "rename", failing(Path.rename))
        with pytest.raises(RuntimeError, match="power cut"):
            written(tmp_path, 3)
    found = names(tmp_path)
    assert found[:2] == ["step-00000001", "step-00000002"]
    assert not any("part" in name for name in found)
    assert latest_step(checkpoints) == (3 if call == 6 else 2)
    assert latest_step(written(tmp_path, 4)) == 4


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 1)
    for start in (checkpoints.latest, lambda: written(tmp_path, 2)):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000009.part")
        start()
        assert not (tmp_path / ".step-00000009.part").exists()


# -- damaged -------------------------------------------------------------------------------------

FILES = ("0.bin", "content.json", "manifest.json")


def flips(file: Path) -> Iterator[None]:
    """Flip one bit after the other, every fifth of the file."""
    data = file.read_bytes()
    for bit in range(0, 8 * len(data), 5):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        yield
    file.write_bytes(data)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_seen(tmp_path: Path, file: str) -> None:
    checkpoints = written(tmp_path, 1)
    path = tmp_path / "step-00000001"
    for _ in flips(path / file):
        assert checkpoint._flaw(path, "run") is not None
    assert checkpoint._flaw(path, "run") is None
    assert latest_step(checkpoints) == 1


DAMAGE: dict[str, Callable[[Path], object]] = {
    "is damaged": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"#"),
    "has|damaged": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "bytes, not|damaged": lambda file: file.write_bytes(b""),
    "cannot be read|no readable": lambda file: file.unlink(),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_one_is_passed_over_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, reason: str
) -> None:
    checkpoints = written(tmp_path, 1, 2)
    DAMAGE[reason](tmp_path / "step-00000002" / file)
    with pytest.raises(ValueError, match=rf"step-00000002: .*({reason}).*--fresh"):
        checkpoints.values(tmp_path / "step-00000002")
    with pytest.raises(ValueError, match=rf"step-00000002: .*({reason}).*--fresh"):
        checkpoints.load(tmp_path / "step-00000002", {})
    assert latest_step(checkpoints) == 1
    (warning,) = [one for one in caplog.records if one.name == "embtables"]
    assert "step-00000002" in warning.message
    assert file in warning.message
    assert "going back to step-00000001" in warning.message
    DAMAGE[reason](tmp_path / "step-00000001" / file)
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*2: .*1: .*--fresh"):
        Checkpoints(tmp_path, "run").latest()


def test_foreign_ones_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = written(tmp_path, 1)
    Checkpoints(tmp_path / "other", "another").save(5, {}, {})
    shutil.move(tmp_path / "other" / "step-00000005", tmp_path / "step-00000005")
    (tmp_path / "step-00000006").mkdir()
    (tmp_path / "step-00000006" / "thesis.tex").write_text("x")
    (tmp_path / "step-00000007").write_text("no folder")
    (tmp_path / "step-last").mkdir()
    assert latest_step(checkpoints) == 1
    assert "step-00000005: a checkpoint of another run (configuration another" in caplog.text
    assert "step-00000006: not a checkpoint" in caplog.text


def test_what_was_passed_over_makes_room_for_what_is_trained_again(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "0.bin").write_bytes(b"")
    assert latest_step(checkpoints) == 1
    checkpoints.save(1, {"step": torch.tensor(1)}, {"step": 1})
    assert names(tmp_path) == ["step-00000001", "step-00000001.1"]
    checkpoints.save(2, {"step": torch.tensor(2)}, {"step": 2})
    assert names(tmp_path) == ["step-00000001.1", "step-00000002"]
    assert latest_step(checkpoints) == 2


# -- the disk is full ----------------------------------------------------------------------------


def test_full_disk_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """A limit of 2 MB for a file stands for the disk."""
    checkpoints = written(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 10**6, hard))
    try:
        with pytest.raises(
            OSError, match=r"step-00000002: could not be written .*: it takes 5\.0 MB"
        ):
            checkpoints.save(2, {"step": torch.zeros(1_250_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001"]
    assert latest_step(checkpoints) == 1


def damaged(run: Path) -> str:
    """Cut the newest checkpoint of a run; return its name."""
    path = max((run / "checkpoints").iterdir())
    (path / "0.bin").write_bytes((path / "0.bin").read_bytes()[:-5])
    return path.name


def plain(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in ("valid", "test", "epoch", "step", "epochs_trained")}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_run_on_a_full_disk_is_resumed_to_the_same_numbers(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("train.checkpoint_every=4")
    whole = train(config, tmp_path / "whole")
    fsync, left = storage.os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(left) == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left.*make room and give the same command"):
            train(config, tmp_path / "full")
    assert 1 <= len(names(tmp_path / "full" / "checkpoints")) <= 2
    assert plain(train(config, tmp_path / "full")) == plain(whole)
    assert rows(tmp_path / "full") == rows(tmp_path / "whole")


# -- a run ---------------------------------------------------------------------------------------


def stopped(tiny: Tiny, run: Path, patch: pytest.MonkeyPatch, *overrides: str) -> RunConfig:
    """A run that is killed at step 27, behind its checkpoint at step 25."""
    config = tiny("train.checkpoint_every=5", *overrides)
    step = TrainStep.__call__

    def train_step(self: TrainStep, *batches: Any) -> Tensor:
        if self.state.step == 27:
            raise RuntimeError("power cut")
        return step(self, *batches)

    with patch.context() as inner:
        inner.setattr(TrainStep, "__call__", train_step)
        with pytest.raises(RuntimeError, match="power cut"):
            train(config, run)
    return config


@pytest.mark.parametrize("table", ["full", "hash+int8(train=true)"])
def test_run_goes_on_from_the_whole_one_to_the_same_numbers(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    table: str,
) -> None:
    config = stopped(tiny, tmp_path / "broken", monkeypatch, f"table={table}")
    assert names(tmp_path / "broken" / "checkpoints") == ["step-00000020", "step-00000025"]
    assert damaged(tmp_path / "broken") == "step-00000025"
    whole, resumed = train(config, tmp_path / "whole"), train(config, tmp_path / "broken")
    assert plain(resumed) == plain(whole)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert models[0] == models[1]
    assert "going back to step-00000020" in caplog.text


def test_run_without_a_whole_one_says_so(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stopped(tiny, tmp_path, monkeypatch, "train.keep_checkpoints=1")
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "content.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*content\.json.*--fresh"):
        train(config, tmp_path)
    assert train(config, tmp_path, fresh=True)["epochs_trained"] == 3


def test_an_evaluation_writes_one_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[str, str | None]] = []
    save = Checkpoints.save

    def seen(self: Checkpoints, *arguments: Any) -> Path:
        path = save(self, *arguments)
        saved.append((path.name, arguments[3]))
        return path

    monkeypatch.setattr(Checkpoints, "save", seen)
    summary = train(tiny("train.keep_checkpoints=1"), tmp_path)
    assert [name for name, _ in saved] == [f"step-000000{step}0" for step in (1, 2, 3)]
    best = f"step-{summary['step']:08d}"
    assert saved[-1][1] == best
    assert names(tmp_path / "checkpoints") == sorted({best, "step-00000030"})


# -- several ranks -------------------------------------------------------------------------------

RANKS = """
import datetime, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
from trainer.checkpoint import Checkpoints
from trainer.step import TrainStep

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
wait = datetime.timedelta(seconds=30)
meeting = f"file://{folder / 'meeting'}"
dist.init_process_group("gloo", meeting, rank=rank, world_size=2, timeout=wait)
full = torch.arange(40.0).view(10, 4)
part = slice(0, 7) if rank == 0 else slice(7, 10)
own = torch.zeros_like(full[part])
shard = Shard.from_tensor_and_offsets(own, [part.start, 0], rank)
rows = init_from_local_shards([shard], 10, 4)

# what one process wrote
checkpoints = Checkpoints(folder / "one", "run")
path = checkpoints.latest()
assert path == folder / "one" / "step-00000003", path
assert checkpoints.values(path) == {"n": 1}
found = checkpoints.load(path, {"rows": rows})
assert torch.equal(own, full[part]), own
assert torch.equal(found["plain"], torch.ones(3))
assert found.keys() == {"plain", "rows"} | ({"rng/cpu"} if rank == 0 else set()), found.keys()

# what two processes write, and read again
tensors = {"rows": rows, "plain": torch.ones(3), "other": torch.full((2,), 5.0)}
checkpoints = Checkpoints(folder / "two", "run")
path = checkpoints.save(3, tensors | {"rng/cpu": torch.tensor([rank])}, {"n": 2})
own.zero_()
found = checkpoints.load(path, {"rows": rows})
assert torch.equal(own, full[part]), own
assert found["rng/cpu"].tolist() == [rank]

# one of them has no room
if rank == 1:
    def full_disk(descriptor):
        raise OSError(28, "No space left")
    os.fsync = full_disk
try:
    checkpoints.save(4, tensors, {})
    raise SystemExit("written")
except OSError as error:
    assert "No space left" in str(error) and "step-00000004" in str(error), error
assert checkpoints.latest() == path
dist.barrier()
dist.destroy_process_group()
"""


def run_two_ranks(folder: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", RANKS]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
    finally:
        for process in ranks:
            process.kill()


def test_two_ranks_read_what_one_wrote_and_one_reads_what_two_wrote(tmp_path: Path) -> None:
    tensors = {"rows": torch.arange(40.0).view(10, 4), "plain": torch.ones(3)}
    tensors |= {"rng/cpu": torch.tensor([0])}
    Checkpoints(tmp_path / "one", "run").save(3, tensors, {"n": 1})
    run_two_ranks(tmp_path)
    assert names(tmp_path / "two") == ["step-00000003"]
    path = tmp_path / "two" / "step-00000003"
    assert names(path) == ["0.bin", "1.bin", "content.json", "manifest.json"]
    sizes = [(path / f"{rank}.bin").stat().st_size for rank in range(2)]
    assert sum(sizes) == 160 + 12 + 8 + 2 * 8  # plain tensors are there once
    checkpoints = Checkpoints(tmp_path / "two", "run")
    assert checkpoints.values(path) == {"n": 2}
    into = {"rows": torch.zeros(10, 4)}
    found = checkpoints.load(path, into)
    assert torch.equal(into["rows"], tensors["rows"])
    assert torch.equal(checkpoints.load(path, {})["rows"], tensors["rows"])
    assert found.keys() == {"rows", "plain", "other", "rng/cpu"}
    assert found["rng/cpu"].tolist() == [0]


def test_one_number_of_any_stride_is_stored(tmp_path: Path) -> None:
    """What ``expand`` and a slice leave behind counts as contiguous, whatever its stride."""
    tensors = {
        "expanded": torch.tensor([7]).expand(1),
        "zero stride": torch.arange(3).as_strided((1,), (0,)),
        "slice": torch.arange(6.0).view(3, 2)[1:2, :1],
    }
    checkpoints = Checkpoints(tmp_path, "run")
    path = checkpoints.save(1, tensors, {})
    for name, found in checkpoints.load(path, {}).items():
        assert torch.equal(found, tensors[name]), name
    into = {"zero stride": torch.zeros(3, dtype=torch.long).as_strided((1,), (0,))}
    assert checkpoints.load(path, into)["zero stride"].item() == 0
