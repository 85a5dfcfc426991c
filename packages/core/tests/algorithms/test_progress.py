# SPDX-License-Identifier: Apache-2.0
"""The progress of a pipeline on standard error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import quanto
from quanto.algorithms import Pipeline


def test_shows_blocks_and_loss(tiny: Any, batches: list[torch.Tensor], capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    Pipeline("gptq").run(quanto.quantize(tiny(), "int4"), batches, progress=True)
    shown = capfd.readouterr()
    assert not shown.out
    assert "calibrate" in shown.err
    assert "4/4" in shown.err
    assert "loss" in shown.err


def test_silent_unless_asked(tiny: Any, batches: list[torch.Tensor], capfd: pytest.CaptureFixture[str]) -> None:
    Pipeline().run(quanto.quantize(tiny(), "int4"), batches, progress=False)
    assert capfd.readouterr().err == ""
