"""Number formats that a machine computes slowly are said, and are not picked."""

from __future__ import annotations

import logging

import pytest
import torch

from trainer.machine import use_bfloat16


@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_is_picked_where_it_is_fast_and_slow_where_it_is_asked_for(
    fast: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    cpu = torch.device("cpu")
    with caplog.at_level(logging.WARNING, "embtables"):
        assert use_bfloat16("auto", cpu) == fast
        assert not use_bfloat16("fp32", cpu)
        assert not caplog.records
        assert use_bfloat16("bf16", cpu)
    assert [one.getMessage()[:24] for one in caplog.records] == (
        [] if fast else ["train.precision: this CP"]
    )
