# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.kernels --backend cpu`: every kernel beside its peers, and the bars that it must clear.

The processor is measured twice, each time in a process of its own: as one with AVX2 alone, and as it is. A whole run
takes half an hour; `--profile`, `--shape`, `--threads` and `--bars` cut it into pieces, which add up in one file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..core import RESULTS, machine
from .bars import bars
from .merge import merged
from .plan import QUICK, Plan
from .profiles import PROFILES
from .report import print_bars, print_linear, print_operators

__all__ = ["main"]

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> None:
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if options.show:
        results = json.loads(options.show.read_text(encoding="utf-8"))
    else:
        results = _run(options)
    for found in results["profiles"]:
        print_linear(console, found)
        print_operators(console, found)
    for found in results["profiles"]:
        print_bars(console, found, bars(found))
    if not options.show and not options.quick and not options.only:
        name = f"{results['machine']} {results['cores']} cores"
        path = options.out or RESULTS / f"cpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        if path.exists():
            results = merged(json.loads(path.read_text(encoding="utf-8")), results)
        results["bars"] = {found["profile"]: [asdict(bar) for bar in bars(found)] for found in results["profiles"]}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        console.print(f"written to {path}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels --backend cpu", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, few repeats: whether all works; writes nothing"
    )
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="candidates with these words in library, kernel, weights"
    )
    parser.add_argument("--bars", action="store_true", help="what the bars compare, not the wide comparison of formats")
    parser.add_argument("--profile", choices=PROFILES, action="append", help="default: each")
    parser.add_argument("--shape", action="append", metavar="N×K", help="default: those of the bars")
    parser.add_argument("--tokens", action="append", type=int, help="default: those of the bars")
    parser.add_argument("--threads", action="append", type=int, help="default: 1 and 2")
    parser.add_argument("--show", type=Path, metavar="JSON", help="prints the tables of an earlier run")
    parser.add_argument("--out", type=Path, metavar="JSON")
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace) -> Plan:
    plan = replace(QUICK if options.quick else Plan(), only=options.only)
    if options.shape:
        shapes = tuple(tuple(int(size) for size in re.split(r"[x×]", shape)) for shape in options.shape)
        plan = replace(plan, shapes=shapes, sweep=plan.sweep if plan.sweep in shapes else shapes[0])
    if options.bars:
        plan = replace(plan, sweep=(0, 0))
    if options.tokens:
        plan = replace(plan, tokens=tuple(options.tokens))
    return replace(plan, threads=tuple(options.threads)) if options.threads else plan


def _run(options: argparse.Namespace) -> dict[str, Any]:
    plan = _plan(options)
    found = []
    for profile in options.profile or PROFILES:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "found.json")
            command = [sys.executable, "-m", "bench.cpu.worker", profile, str(out), json.dumps(asdict(plan))]
            subprocess.run(command, cwd=ROOT, check=True)
            found.append(json.loads(out.read_text()))
        if found[-1]["isa"] == "avx2" and profile == "native":  # there is no more than that
            found.pop(0)
    return {
        "machine": machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "plan": asdict(plan),
        "profiles": found,
    }
