# SPDX-License-Identifier: Apache-2.0
"""What docs/cpu.md shows, runs; what it says of kernels, is what they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quanto
import quanto_backend_cpu

PAGE = Path(__file__).parents[4] / "docs" / "cpu.md"


@pytest.fixture(scope="module")
def text() -> str:
    if not PAGE.exists():
        pytest.skip("the package is alone: docs/cpu.md is not here")
    return PAGE.read_text(encoding="utf-8")


def test_its_blocks_run(text: str) -> None:
    names: dict[str, Any] = {}
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    for block in found:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["exact"].shape == names["slow"].shape == (3, 256)


def test_it_names_every_instruction_set(text: str) -> None:
    assert all(f"`{name}`" in text for name in quanto_backend_cpu.instruction_sets())


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["int8", "int4", "int3", "int2", "fp4", "mxfp4", "nf4", "float8_e4m3fn", "mxfp8"])
def test_its_table_of_schemes(text: str, weights: str, dtype: torch.dtype, activations: str | None) -> None:
    layer = quanto.freeze(quanto.quantize(nn.Sequential(nn.Linear(128, 64, dtype=dtype)), weights, activations))
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line] for line in lines]
    row = next(row for row in rows if weights.split("_")[0] in re.findall(r"[a-z]+\d+", row[0]))
    said = row[3 if activations else 1 if dtype == torch.float32 else 2]
    kernel = quanto.explain(layer).layers[0].kernel
    if activations:
        assert kernel == "cpu.scaled_linear"
    else:
        assert kernel == {"exact": "cpu.linear", "integer": "cpu.linear_integer"}[said]
