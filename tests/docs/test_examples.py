# SPDX-License-Identifier: Apache-2.0
"""Every example runs as a user would run it. The demo in examples/demo is run by its own nox session."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tree import ROOT, shown

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=shown)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    """In an empty folder, offline; its first lines say what it shows."""
    assert ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))), "an example begins with what it shows"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, str(example)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.strip(), "an example prints its result"
