"""Runs every check on every case, with the failures that a case declares."""

from __future__ import annotations

import pytest
from cases import CASES, Case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        check = metafunc.function.__name__.removeprefix("test_")
        metafunc.parametrize("case", [_param(case, check) for case in CASES])


def _param(case: Case, check: str):
    reason = case.expect_failure.get(check)
    marks = []
    if reason:
        errors = (AssertionError, ValueError)
        marks = [pytest.mark.xfail(reason=reason, raises=errors, strict=True)]
    return pytest.param(case, id=str(case), marks=marks)
