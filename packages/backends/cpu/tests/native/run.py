# SPDX-License-Identifier: Apache-2.0
"""Builds the grid of shapes and runs it: under AddressSanitizer and UBSan, and for aarch64.

    nox -s native-cpu            some hundred shapes for each instruction set
    nox -s native-cpu -- 1       every shape: an hour

For aarch64 it takes Debian's `g++-aarch64-linux-gnu`, or Zig (`pip install ziglang`), and runs what they make under
`qemu-aarch64` (Debian's `qemu-user-static`). What it had to leave out for want of them it writes to `left-out.txt` in
its folder, which makes nox call the session skipped, not successful.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1"


def main() -> None:
    work = Path(sys.argv[1])
    steps = sys.argv[2:] or ["1997"]
    note = work / "left-out.txt"
    note.unlink(missing_ok=True)
    _run(_build(work / "sanitized", f"-DCMAKE_CXX_FLAGS_RELEASE={SANITIZERS}"), steps)
    if platform.machine() in ("aarch64", "arm64"):
        return  # that was it
    missing = _for_aarch64(work, steps)
    if missing is not None:
        note.write_text(f"sanitizers passed, but nothing was {missing}\n", encoding="utf-8")
        print(f"NOTHING WAS {missing}", file=sys.stderr)


def _for_aarch64(work: Path, steps: list[str]) -> str | None:
    """Builds and runs for that processor on another; returns what was not done, and why."""
    target = _aarch64(work)
    if target is None:
        return "compiled for aarch64: neither aarch64-linux-gnu-g++ (Debian) nor ziglang (PyPI) is installed"
    program = _build(work / "aarch64", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", *target)
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        return "run for aarch64, only compiled: qemu-aarch64 (Debian's qemu-user-static) is not installed"
    _run(program, steps, emulator)
    # Without sdot and smmla only the portable variant is there, and nothing it shares may have been built with them.
    _run(program, steps, emulator, "-cpu", "cortex-a53")
    return None


def _aarch64(work: Path) -> list[str] | None:
    """What tells CMake of a compiler for aarch64 whose programs need no files of that system; None if there is none."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None and importlib.util.find_spec("ziglang") is not None:
        work.mkdir(parents=True, exist_ok=True)
        wrapper = work / "zig-c++"
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m ziglang c++ -target aarch64-linux-musl "$@"\n')
        wrapper.chmod(0o755)
        compiler = str(wrapper)
    return None if compiler is None else [f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_EXE_LINKER_FLAGS=-static"]


def _build(folder: Path, *options: str) -> Path:
    # cmake and ninja may be those of this environment
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path) or "cmake"
    for command in (["-S", PACKAGE, "-B", folder, "-G", "Ninja", "-DQUANTO_GRID=ON", *options], ["--build", folder]):
        subprocess.run([cmake, *command], check=True, env={**os.environ, "PATH": path})
    return folder / "quanto_cpu"


def _run(program: Path, steps: list[str], *emulator: str) -> None:
    subprocess.run([*emulator, program, *steps], check=True)


if __name__ == "__main__":
    main()
