from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Spare the tests the wait for the disk, most of their time."""
    monkeypatch.setattr("data.prepare.sync", lambda path: None)
