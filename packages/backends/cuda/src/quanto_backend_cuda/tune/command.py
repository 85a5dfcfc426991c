# SPDX-License-Identifier: Apache-2.0
"""The subcommand `quanto tune`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from quanto._progress import track

from ..ops import product, specialized, stream
from ..ops.weights import facts
from ..tables import gpu_name, read_user_table, slug, table_for, user_table
from .compiling import Ahead
from .problem import Problem
from .search import Found, search

__all__ = ["GROUPS", "merged", "plan", "served", "tune", "write"]

#: columns that share a scale, where most users have them; other qtypes have a scale per row.
GROUPS = {"int4": 128, "int3": 128, "int2": 128, "nf4": 64, "fp4": 64, "mxfp4": 32}
_WEIGHTS = (*GROUPS, "int8", "float8_e4m3fn", "float8_e5m2")
_SCALED = ("int8", "float8_e4m3fn", "int4")
_SHAPES = ("4096x4096", "14336x4096", "4096x14336")
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def tune(
    weights: Annotated[
        list[str] | None, typer.Option("--weights", "-w", help="Qtypes of weights; default: int4 and int8.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", "-s", metavar="NxK", help=f"Out and in features; default: {', '.join(_SHAPES)}."),
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", "-m", help="Tokens per call; default: powers of two to 256.")
    ] = None,
    activations: Annotated[
        bool, typer.Option("--activations", help="Tune products with quantized activations instead.")
    ] = False,
    minutes: Annotated[float, typer.Option(help="Stop after so long; what was found until then is kept.")] = 10.0,
    device: Annotated[str, typer.Option(help="The GPU.")] = "cuda:0",
    output: Annotated[
        Path | None, typer.Option(help="The table to write; default: the one that quanto reads.", dir_okay=False)
    ] = None,
) -> None:
    """Measure the CUDA kernels on this machine's GPU and remember their best tiles."""
    problems = plan(weights or ["int4", "int8"], shape or list(_SHAPES), tokens or list(_TOKENS), activations)
    if minutes <= 0:
        raise ValueError(f"--minutes must be more than 0, got {minutes:g}")
    chosen = torch.device(device)
    if chosen.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"--device {device}: there is no such GPU here, and only GPUs are tuned")
    if (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {device}: this machine has {torch.cuda.device_count()}")
    problems = [served(problem, chosen) for problem in problems]
    path = user_table() if output is None else output
    before = read_user_table(path)
    ahead = Ahead(chosen)
    found: list[Found] = []
    try:
        for one in track(search(problems, chosen, minutes * 60, ahead), "tune", total=len(problems)):
            found.append(one)
            was = "" if one.before is None else f", was {one.before:.1f}"
            typer.echo(f"{one.problem}: {one.us:.1f} us{was}")
    finally:
        ahead.close()
        if found:
            write(path, merged(before, slug(gpu_name(chosen.index or 0)), found))
            table_for.cache_clear()
    left = len(problems) - len(found)
    typer.echo(f"wrote {len(found)} tiles to {path}" + (f"; {left} left, raise --minutes for more" if left else ""))


def plan(weights: list[str], shapes: list[str], tokens: list[int], activations: bool) -> list[Problem]:
    """Every problem, few tokens first.

    Raises:
        ValueError: naming the option whose value makes no sense.
    """
    known = _SCALED if activations else _WEIGHTS
    for name in weights:
        if name not in known:
            raise ValueError(f"--weights {name}: there are {', '.join(known)}{' with activations' * activations}")
    for count in tokens:
        if count < 1:
            raise ValueError(f"--tokens {count}: must be at least 1")
    kernel = "scaled" if activations else "linear"
    made = []
    for count in sorted(set(tokens)):
        for n, k in map(_parsed, shapes):
            made += [Problem(kernel, name, 0 if activations else GROUPS.get(name, 0), count, n, k) for name in weights]
    return made


def served(problem: Problem, device: torch.device) -> Problem:
    """The problem, of the kernel that runs it on the device."""
    p, f = problem, facts(problem.qtype, [1, problem.group or problem.k], problem.k)
    if p.kernel == "scaled":
        known = product.takes(p.m, p.n, p.k, p.x_qtype, p.qtype, f, True, p.dtype) and product.TRIAL.serves(device)
        return replace(p, kernel=product.KERNEL) if known else p
    scale = torch.empty(0, dtype=p.dtype)
    if p.m <= stream.TOKENS and stream.takes(f, p.k, p.dtype, None, scale) and stream.TRIAL.serves(device):
        return replace(p, kernel=stream.KERNEL)
    if (
        p.m >= specialized.TOKENS
        and specialized.takes(f, p.k, p.dtype, None, scale)
        and specialized.TRIAL.serves(device)
    ):
        return replace(p, kernel=specialized.KERNEL)
    return p


def _parsed(shape: str) -> tuple[int, int]:
    n, _, k = shape.lower().partition("x")
    if not (n.isdecimal() and k.isdecimal()) or int(n) < 16 or int(n) % 16 or int(k) < 128 or int(k) % 128:
        raise ValueError(f"--shape {shape}: write out x in features, multiples of 16 and of 128, such as 4096x14336")
    return int(n), int(k)


def merged(before: dict[str, Any], gpu: str, found: list[Found]) -> dict[str, Any]:
    """A table with new rows in the place of those of the same problems; other GPUs stay as they are."""
    mine = dict(before.get(gpu, {}))
    for one in found:
        key, row = f"{one.problem.kernel}/{one.problem.qtype}", one.row()
        others = [r for r in mine.get(key, []) if any(r[name] != row[name] for name in "mnk")]
        mine[key] = [*others, row]
    return {**before, gpu: mine}


def write(path: Path, table: dict[str, Any]) -> None:
    """Writes a table whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
