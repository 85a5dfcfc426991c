# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.kernels --backend cuda`: every kernel beside its peers, and the bars that it must clear.

Replays of CUDA graphs, over enough copies of each weight that none is found in the L2; median of five.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import quanto
from quanto.plugins import plugins
from quanto_backend_cuda.tables import slug

from ..core import RESULTS
from . import first_call, operators, ours, peers
from .bars import bars
from .measure import ceilings, linear_rows
from .plan import Plan, parse
from .report import show

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    plan, options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if options.show:
        show(console, json.loads(Path(options.show).read_text(encoding="utf-8")))
        return
    if not torch.cuda.is_available():
        raise SystemExit("bench.cuda: there is no GPU here; --show prints the tables of an earlier run")
    path = Path(options.out) if options.out else RESULTS / f"kernels-cuda-{slug(torch.cuda.get_device_name())}.json"
    found = _run(plan, options.skip_operators, None if plan.quick and not options.out else path)
    show(console, found)
    if not plan.quick or options.out:
        console.print(f"written to {path}")


def _run(plan: Plan, skip_operators: bool, path: Path | None) -> dict[str, Any]:
    import triton

    plugins.load()
    found: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "quanto-core": quanto.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "ceilings": ceilings(),
        "linear": [],
        "operators": [],
        "bars": [],
    }
    for row in linear_rows(plan, [*peers.candidates(), *ours.candidates()], found["ceilings"]):
        found["linear"].append(row)
        found["bars"] = bars(found["linear"])
        _keep(found, path)
    if not skip_operators:
        n, k = plan.shapes[0]
        for row in operators.rows(n, k, found["ceilings"]["read_gbs"]):
            found["operators"].append(row)
        found["first_call_s"] = first_call.measure()
    _keep(found, path)
    return found


def _keep(found: dict[str, Any], path: Path | None) -> None:
    """What there is so far: a run that is cut off leaves its rows."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
