"""What the README says is run, not believed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
INDENTED = re.findall(r"^    ((?:make|embtables) .+?)(?:\s{2,}#.*)?$", README, re.MULTILINE)


def test_python_block_runs(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    promised = re.search(r"uncompressed=(\d+)", block)
    assert promised
    assert f"uncompressed={promised[1]})" in done.stdout
    inference = re.search(r"inference=(\d+)", done.stdout)
    assert inference
    assert int(inference[1]) <= 4_000_000
    assert (tmp_path / "tables.safetensors").exists()


def test_commands_are_found() -> None:
    assert any(line.startswith("make demo") for line in INDENTED)
    assert sum(line.startswith("embtables train") for line in INDENTED) >= 2


@pytest.mark.parametrize("line", [line for line in INDENTED if line.startswith("make")])
def test_make_target_exists(line: str) -> None:
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "line", [line for line in INDENTED if re.match(r"embtables (train|show|prepare)", line)]
)
def test_configuration_is_valid(line: str) -> None:
    words = [word for word in shlex.split(line)[2:] if not word.startswith("--")]
    assert load_config(words[0], words[1:]).name == words[0]


@pytest.mark.parametrize("line", [line for line in INDENTED if line.startswith("embtables ls")])
def test_ls_runs(line: str) -> None:
    command = [str(Path(sys.executable).with_name("embtables")), *shlex.split(line)[1:]]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
