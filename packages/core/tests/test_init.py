# SPDX-License-Identifier: Apache-2.0
"""`import quanto`: cheap, harmless, complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

import quanto


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_everything_announced_exists() -> None:
    assert all(hasattr(quanto, name) for name in quanto.__all__)


def test_what_is_lazy_is_imported_when_asked_for() -> None:
    code = """
import sys, quanto
lazy = ["quanto.algorithms", "quanto.planner"]
print([m in sys.modules for m in lazy], quanto.Pipeline.__module__, quanto.plan.__module__, "plan" in dir(quanto))
"""
    assert _python(code) == "[False, False] quanto.algorithms.pipeline quanto.planner.plan True"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = quanto.nonsense


def test_imports_nothing_heavy() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import quanto
heavy = ("transformers", "diffusers", "torch._dynamo", "torch._inductor", "safetensors", "rich", "typer", "pytest")
print([m for m in set(sys.modules) - before if m.startswith(heavy)])
"""
    assert _python(code) == "[]"


def test_import_loads_no_plugin() -> None:
    assert _python("import quanto; print(quanto.plugins.plugins.records, len(quanto.kernels.specs))") == "[] 0"


@pytest.mark.timing
def test_import_adds_little_to_torch() -> None:
    code = "import time, torch; s = time.perf_counter(); import quanto; print(time.perf_counter() - s)"
    assert min(float(_python(code)) for _ in range(5)) <= 0.3  # the fastest: what else the machine does is no matter
