"""Runs every check on every case, with the failures that a case declares."""

from __future__ import annotations

import pytest
from cases import CASES, Case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    check = metafunc.function.__name__.removeprefix("test_")
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", [_param(case, check) for case in CASES])
    if "searching" in metafunc.fixturenames:
        params = [_param(case, check) for case in CASES if case.searches]
        metafunc.parametrize("searching", params)


def _param(case: Case, check: str):
    reason = case.expect_failure.get(check)
    marks = []
    if reason:
        errors = (AssertionError, ValueError)
        marks = [pytest.mark.xfail(reason=reason, raises=errors, strict=True)]
    return pytest.param(case, id=str(case), marks=marks)
