# SPDX-License-Identifier: Apache-2.0
"""The bars that the backend has to clear, as ratios within one run."""

from __future__ import annotations

from typing import Any

__all__ = ["bars"]

Row = dict[str, Any]
_S, _W, _L = (4096, 4096), (14336, 4096), (8192, 28672)
# µs of Marlin and GemLite, which have no package that carries an H100 kernel: measured once, see the issue.
_MARLIN = {_S: {64: 24.3}, _W: {64: 29.2}, _L: {64: 88.1}}
_GEMLITE_FP8 = {
    _S: {1: 9.5, 16: 13.2, 256: 14.1, 4096: 144.6},
    _W: {1: 22.9, 16: 27.4, 256: 37.8, 4096: 463.9},
}


def bars(rows: list[Row]) -> list[Row]:
    """Each bar at each place: what was asked, what was found, whether it is met (None: not measured)."""
    at = {(r["source"], r["name"], (r["n"], r["k"]), r["m"]): r for r in rows if r.get("us")}
    found: list[Row] = []

    def us(name: str, shape: tuple[int, int], m: int, source: str = "quanto") -> float | None:
        row = at.get((source, name, shape, m))
        return None if row is None else float(row["us"])

    def add(bar: str, shape: tuple[int, int], m: int, value: float | None, limit: float, least: bool = True) -> None:
        met = None if value is None else bool(value >= limit if least else value <= limit)
        where = f"{shape[0]}x{shape[1]}, {m} tokens"
        found.append({"bar": bar, "where": where, "value": value, "limit": limit, "least": least, "met": met})

    for name, limits in (("int4 g128", (0.5, 0.7, 0.8)), ("int8", (0.7, 0.85, 0.85))):
        for shape, limit in zip((_S, _W, _L), limits, strict=True):
            for m in (1, 16):
                row = at.get(("quanto", name, shape, m))
                add(f"{name}: share of the read ceiling", shape, m, None if row is None else row["share"], limit)
    for name, bits in (("int3 g128", 3.125), ("int2 g128", 2.125)):
        add(f"{name}: speed over int4", _L, 1, _ratio(us("int4 g128", _L, 1), us(name, _L, 1)), 0.75 * 4.125 / bits)
    for shape in (_S, _W, _L):
        mine = us("int4 g128", shape, 64)
        add("int4: speed over Marlin", shape, 64, _ratio(_MARLIN[shape][64], mine), 1.25)
        for m, limit in ((256, 1.0), (1024, 0.97), (4096, 0.97)):
            add("int4: speed over cuBLAS bf16", shape, m,
                _ratio(us("bf16", shape, m, "cuBLAS"), us("int4 g128", shape, m)), limit)  # fmt: skip
            alone = us("_scaled_mm float8, GEMM alone", shape, m, "PyTorch")
            add("float8 dynamic: time over _scaled_mm alone", shape, m,
                _ratio(us("float8 e4m3 × float8 dynamic", shape, m), alone), 1.08, False)  # fmt: skip
        for m, theirs in _GEMLITE_FP8.get(shape, {}).items():
            add("float8 dynamic: speed over GemLite", shape, m,
                _ratio(theirs, us("float8 e4m3 × float8 dynamic", shape, m)), 1.0)  # fmt: skip
        row = at.get(("quanto", "int8 × int8 dynamic", shape, 4096))
        add("int8 dynamic: TOP/s", shape, 4096, None if row is None else row["tflops"], 1100)
    return found


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b
