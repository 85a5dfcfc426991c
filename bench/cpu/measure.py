# SPDX-License-Identifier: Apache-2.0
"""Everything that is measured on one processor."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

import quanto_backend_cpu

from . import operators, quanto_kernels
from .candidate import Candidate, Missing
from .ceilings import Reader, int8_rate
from .peers import ggml, modules, onnx, pytorch
from .plan import Plan
from .problem import Problem
from .rounds import Entrant
from .rounds import measure as measure_group

__all__ = ["measure"]

PEERS: dict[str, Callable[[], Iterator[Candidate]]] = {
    "torch": pytorch.candidates,
    "onnxruntime": onnx.candidates,
    "ggml-py": ggml.candidates,
    "optimum-quanto": modules.optimum_quanto,
    "torchao": modules.torchao,
    "bitsandbytes": modules.bitsandbytes,
}
ODD = (-3, 3)  # what sizes that don't divide differ by: 4093 × 4099


def measure(plan: Plan) -> dict[str, Any]:
    """Ceilings, rows of linear layers, rows of other operators, call costs; peers that are missing and why."""
    warnings.simplefilter("ignore")  # deprecations of torch that peers rely on
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    isa = quanto_backend_cpu.instruction_set()
    candidates, missing = _candidates(plan)
    reader = Reader(512 if plan.megabytes >= 64 else 64)
    found: dict[str, Any] = {"isa": isa, "versions": _versions(), "missing": missing, "linear": [], "operators": []}
    found["ceilings"] = [_ceiling(threads, reader, isa) for threads in plan.threads]
    for shape in plan.shapes:
        here = [c for c in candidates if c.everywhere or shape == plan.sweep]
        problem = Problem(*shape)
        for group in ("8", "4", "other"):
            members = [c for c in here if c.source == "torch" and c.compute == "float"]
            members += [c for c in here if c.compute != "float" and c.group == group]
            _say(f"{shape[0]} × {shape[1]}, {group} bits: {len(members)} candidates")
            found["linear"] += _run(members, problem, plan, reader, missing)
        if shape == plan.sweep:
            _say("other operators")
            for threads in plan.threads:
                found["operators"] += operators.measure(problem, threads, plan.rounds_for(1))
            odd = Problem(shape[0] + ODD[0], shape[1] + ODD[1])
            found["linear"] += _run([*pytorch.floats(), *quanto_kernels.odd()], odd, plan, reader, missing)
    found["overhead_us"] = operators.overhead(4000 if plan.rounds_for(1) > 2 else 50)
    return found


def _run(
    members: list[Candidate], problem: Problem, plan: Plan, reader: Reader, missing: dict[str, str]
) -> list[dict[str, Any]]:
    entrants = []
    for member in members:
        try:
            entrants.append(Entrant(member, member.build(problem, plan.megabytes)))
        except Exception as error:  # of a peer: its own business, reported
            if member.source == "quanto":
                raise
            missing[f"{member.source} {member.name}"] = f"{type(error).__name__}: {error}"[:200]
    rows = []
    for tokens in plan.tokens:
        taking = [e for e in entrants if e.candidate.everywhere or tokens <= plan.sweep_tokens]
        for threads in plan.threads:
            rows += measure_group(taking, problem, tokens, threads, plan, reader)
    del entrants
    gc.collect()
    for row in rows:  # the error is known after the second number of tokens
        known = [r for r in rows if r["error_rms"] is not None and _same(r, row)]
        if known:
            row |= {"error_rms": known[0]["error_rms"], "error_max": known[0]["error_max"]}
    return rows


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[key] == b[key] for key in ("source", "name", "weights", "compute", "activations"))


def _candidates(plan: Plan) -> tuple[list[Candidate], dict[str, str]]:
    found, missing = [*pytorch.floats(), *quanto_kernels.candidates()], {}
    for name, candidates in PEERS.items():
        try:
            found += candidates()
        except (Missing, ImportError, OSError) as error:
            missing[name] = str(error)
    if plan.only:
        found = [c for c in found if c.compute == "float" or plan.only in f"{c.source} {c.name} {c.weights}"]
    return found, missing


def _ceiling(threads: int, reader: Reader, isa: str) -> dict[str, Any]:
    read = max(reader.best(threads) for _ in range(5))
    return {
        "threads": threads,
        "read_gbs": read / 1e9,
        "int8_gops": 2 * int8_rate(threads, isa.startswith("avx512")) / 1e9,
    }


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("quanto-core", "quanto-backend-cpu", *list(PEERS)[1:]):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
