# SPDX-License-Identifier: Apache-2.0
"""The kernels compile, for GPUs that are not here: the interpreter takes Python that the compiler does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_kernels.py")


def compile_for(tmp_path: Path, *arguments: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "QUANTO_PLUGINS": ""}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip().endswith(" 0 failures"), run.stdout[-4000:]
    assert int(run.stdout.strip().splitlines()[-1].split()[0]) >= 20


@pytest.mark.parametrize("target", [("cuda", "90"), ("cuda", "80"), ("hip", "gfx942")], ids="-".join)
def test_compiles(tmp_path: Path, target: tuple[str, str]) -> None:
    """A part; without `few` the script compiles everything, which takes minutes."""
    compile_for(tmp_path, *target, "few")
