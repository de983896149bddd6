"""`embtables advise` on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "advise.md"


def test_help_loads_nothing_heavy_and_ends_with_examples() -> None:
    code = (
        "import atexit, sys; from trainer.cli import main;"
        "atexit.register(lambda: print('LOADED', {'torch', 'numpy', 'polars'} & set(sys.modules)));"
        "main(['advise', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("LOADED set()")
    assert "embtables advise" in done.stdout.partition("Examples:")[2]


def test_example_of_the_page_is_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(["advise", "synthetic/autoint", "--ratio", "0.1"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out in PAGE.read_text(), "stale: print it again"


def test_mistakes_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["advise", "synthetic/autoint"])
    assert leaving.value.code == 2
    assert "give --budget 10MB or --ratio 0.1" in capsys.readouterr().err
