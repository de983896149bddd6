"""Imports stay lean, and a torch, torchrec and FBGEMM that do not fit are named at once."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from embtables.torchrec_types import FITTING, check_versions

HEAVY = ["fbgemm_gpu", "matplotlib", "pandas", "polars", "torch", "torchrec"]


def _loaded(statement: str) -> list[str]:
    """Return the heavy packages that a fresh interpreter has loaded after a statement."""
    program = f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_the_package_loads_no_torch() -> None:
    assert _loaded("import embtables; embtables.__all__") == []


def test_names_and_descriptions_load_no_torchrec() -> None:
    statement = (
        "from embtables.compressor import AXES; [r.descriptions() for r in AXES.values()]; "
        "import embtables; embtables.parse_table('qr+mde+int8'); embtables.parse_bytes('1MB')"
    )
    assert _loaded(statement) == ["torch"]


def test_every_public_name_is_there() -> None:
    import embtables

    assert all(getattr(embtables, name) is not None for name in embtables.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Tables'"):
        embtables.Tables  # noqa: B018


def test_versions_that_fit() -> None:
    check_versions({name: minor + ".0" for name, minor in FITTING.items()})
    check_versions({"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.2+cpu"})


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({"torch": "2.12.1"}, r"torch 2.12.1 \(needs 2.13.x\)"),
        ({"torch": "2.130.0"}, r"torch 2.130.0 \(needs"),
        ({"torchrec": None}, r"torchrec is missing \(needs 1.8.x\)"),
        ({"fbgemm-gpu": "1.9.0"}, r"fbgemm-gpu 1.9.0 \(needs 1.8.x\)"),
    ],
)
def test_versions_that_do_not_fit(installed: dict[str, str | None], message: str) -> None:
    fitting: dict[str, str | None] = {name: minor + ".0" for name, minor in FITTING.items()}
    with pytest.raises(ImportError, match=message) as refused:
        check_versions(fitting | installed)
    assert "requirements/cpu.txt" in str(refused.value)
    assert str(refused.value).count("needs") == 1
