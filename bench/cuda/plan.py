# SPDX-License-Identifier: Apache-2.0
"""What is measured."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

__all__ = ["SCALED", "WEIGHTS", "Plan", "parse"]

#: name of a format, and how `quanto.quantize_tensor` makes it.
WEIGHTS = {
    "int8": {"qtype": "int8"},
    "int4 g128": {"qtype": "int4", "symmetric": True},
    "int4 g128 zeros": {"qtype": "int4", "symmetric": False},
    "int3 g128": {"qtype": "int3", "symmetric": True},
    "int2 g128": {"qtype": "int2", "symmetric": True},
    "nf4 g64": {"qtype": "nf4"},
    "fp4 g64": {"qtype": "fp4"},
    "mxfp4": {"qtype": "mxfp4"},
    "float8 e4m3": {"qtype": "float8_e4m3fn"},
    "float8 e5m2": {"qtype": "float8_e5m2"},
}
#: format of the weight, and of the activations.
SCALED = {
    "int8": "int8",
    "float8 e4m3": "float8_e4m3fn",
    "int4 row": "int8",
}


@dataclass(frozen=True)
class Plan:
    """Shapes `(n, k)`, tokens, and the words that a candidate's name must have."""

    shapes: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    only: str
    seconds: float
    quick: bool


def parse(arguments: list[str]) -> tuple[Plan, argparse.Namespace]:
    """The plan, and the options as they were given."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels --backend cuda", description=__doc__)
    parser.add_argument("--shape", action="append", metavar="NxK", help="default: the three of the bars")
    parser.add_argument("--tokens", action="append", type=int, help="default: 1, 16, 64, 256, 1024, 4096")
    parser.add_argument("--only", default="", metavar="WORDS", help="candidates whose source or name has these words")
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long; what was measured is kept")
    parser.add_argument("--quick", action="store_true", help="one small shape: whether all works; writes nothing")
    parser.add_argument("--skip-operators", action="store_true", help="linear layers alone")
    parser.add_argument("--out", metavar="JSON", help="default: bench/results/kernels-cuda-<gpu>.json")
    parser.add_argument("--show", metavar="JSON", help="print the tables of an earlier run")
    options = parser.parse_args(arguments)
    shapes = options.shape or (["512x1024"] if options.quick else ["4096x4096", "14336x4096", "8192x28672"])
    pairs = [tuple(int(size) for size in shape.replace("×", "x").split("x")) for shape in shapes]
    tokens = options.tokens or ([1, 64] if options.quick else [1, 16, 64, 256, 1024, 4096])
    return Plan(tuple((n, k) for n, k in pairs), tuple(tokens), options.only, options.seconds, options.quick), options
