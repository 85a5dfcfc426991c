# SPDX-License-Identifier: Apache-2.0
"""Models compile whole, and block by block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import cls, run

from quanto_diffusers import QuantoConfig


@pytest.mark.parametrize(("weights", "repeated"), [("int8", True), ("int4", False)])
def test_without_graph_breaks(weights: str, repeated: bool, saved: Callable[[str], Path]) -> None:
    model = cls("flux").from_pretrained(saved("flux"), quantization_config=QuantoConfig(weights))
    expected = run(model, "flux")
    torch.compiler.reset()
    if repeated:
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    else:
        model.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(model, "flux"), expected, rtol=1e-4, atol=1e-5)
