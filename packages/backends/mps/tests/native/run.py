# SPDX-License-Identifier: Apache-2.0
"""Runs the shaders under AddressSanitizer and UBSan, by the shim: `nox -s native-mps`.

A part of the conformance suite and the tests of the operators, in a Python into which the sanitizer is loaded first, so
that each tensor lies between guarded bytes. `nox -s native-mps -- 1000` takes the whole of the suite: half an hour.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Of the suite: what differs in shapes and addresses.
CHECKS = "agrees_elementwise or takes_misaligned_memory or takes_any_rank"


def _library(name: str) -> str:
    """Where the compiler has a library."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def main() -> None:
    work, cases = Path(sys.argv[1]), (sys.argv[2:] or ["1"])[0]
    work.mkdir(parents=True, exist_ok=True)
    note = work / "left-out.txt"  # nox then calls the session skipped
    note.unlink(missing_ok=True)
    if sys.platform != "linux" or shutil.which("g++") is None:
        note.write_text("not run: takes Linux and g++\n", encoding="utf-8")
        return
    # libstdc++ with it: the sanitizer looks for what throws exceptions before torch has loaded it
    preloaded = [_library(name) for name in ("libasan.so", "libstdc++.so")]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        # Python itself leaks by that measure; memory that torch never frees is none of a shader's
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "QUANTO_MPS_SANITIZE": str(work),
        "QUANTO_MPS_CASES": cases,
        "PYTHONPATH": str(TESTS.parent / "src"),
        "OMP_NUM_THREADS": "1",
    }
    files = [str(TESTS / "test_ops.py"), str(TESTS / "test_specs.py")]
    chosen = f"test_ops or (test_conforms and ({CHECKS}))"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *files, "-k", chosen], check=True, env=environment
    )


if __name__ == "__main__":
    main()
