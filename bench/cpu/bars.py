# SPDX-License-Identifier: Apache-2.0
"""The bars that the backend has to clear, as ratios within one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Bar", "Figure", "bars"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One measurement of a bar: where, how much, and against whom."""

    where: str
    value: float | None
    against: str = ""


@dataclass(frozen=True)
class Bar:
    """What is asked, and what was found.

    Attributes:
        name: in words.
        limit: to reach, or not to exceed where `most`.
        most: whether less is better.
        figures: one for each place where it was measured.
    """

    name: str
    limit: float
    most: bool
    figures: tuple[Figure, ...]

    def met(self, figure: Figure) -> bool | None:
        if figure.value is None:
            return None
        return figure.value <= self.limit if self.most else figure.value >= self.limit


def bars(found: dict[str, Any]) -> list[Bar]:
    """Every bar for the rows of one processor."""
    table = _Rows(found["linear"])
    made = []
    for compute, weights, limit in (
        ("integer", "int8", 0.9),
        ("integer", "int4 g128", 0.8),
        ("integer", "int2 g128", 0.6),
        ("exact", "int8", 0.8),
        ("exact", "int4 g128", 0.55),
    ):
        made.append(
            table.bar(
                f"1 token, {weights} {compute}: share of read bandwidth", limit, False, _share, compute, weights, (1,)
            )
        )
    for compute in ("integer", "exact"):
        for weights in ("int8", "int4 g128"):
            name = f"1 token, {weights} {compute}: speed over the fastest peer of its width and precision"
            made.append(table.bar(name, 1.0, False, _over_peer, compute, weights, (1,)))
    for compute in ("integer", "exact"):
        for weights, limit in (("int8", 1.4), ("int4 g128", 2.0)):
            name = f"8 tokens, {weights} {compute}: time over 1 token"
            made.append(table.bar(name, limit, True, _over_one, compute, weights, (8,)))
    many = (128, 512)
    made.append(
        table.bar("128 and 512, int8 integer: speed over fbgemm", 1.0, False, _over_fbgemm, "integer", "int8", many)
    )
    name = "128 and 512, int8 activations per token (scaled_linear): speed over fbgemm"
    made.append(table.bar(name, 1.0, False, _over_fbgemm, "integer", "int8", many, "scaled_linear, dynamic"))
    name = "128 and 512, int4 integer: speed over the fastest int4 peer"
    made.append(table.bar(name, 1.5, False, _over_any, "integer", "int4 g128", many))
    for weights in ("int8", "int4 g128"):
        name = f"128 and 512, {weights} exact: speed over sgemm"
        made.append(table.bar(name, 0.95, False, _over_sgemm, "exact", weights, many))
    made.append(_cliffs(table))
    call = found["overhead_us"]
    figures = [
        Figure("operator, exact", call["operator, exact"] / call["F.linear"], "F.linear"),
        Figure("operator, integer", call["operator, integer"] / call["F.linear"], "F.linear"),
        Figure("module", call["quantized nn.Linear"] / call["nn.Linear"], "nn.Linear"),
    ]
    made.append(Bar("64 × 64, 1 token: call time over the float layer", 1.5, True, tuple(figures)))
    moves = [row for row in found["operators"] if row["operator"].endswith("panels") and row["weights"] == "int4"]
    figures = [Figure(f"{row['operator']}, {row['threads']} threads", row["ms"]) for row in moves]
    made.append(Bar("int4 layout of 4096 × 4096, ms a direction", 10.0, True, tuple(figures)))
    return made


class _Rows:
    """Rows of linear layers by what they are."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = [row for row in rows if row["us"]]

    def places(self, tokens: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
        """Shapes, threads and tokens at which the bars are measured: those that divide."""
        found = {
            (r["n"], r["k"], r["threads"], r["tokens"]) for r in self.rows if r["tokens"] in tokens and not r["n"] % 16
        }
        return sorted(found, key=lambda p: (p[0] * p[1], p[2], p[3]))

    def at(self, place: tuple[int, int, int, int]) -> list[Row]:
        return [r for r in self.rows if (r["n"], r["k"], r["threads"], r["tokens"]) == place]

    def ours(self, place: Any, compute: str, weights: str, name: str | None = None) -> Row | None:
        name = name or ("linear" if compute == "exact" else "linear_integer")
        return _first(
            r
            for r in self.at(place)
            if r["source"] == "quanto" and (r["name"], r["weights"], r["activations"]) == (name, weights, "float32")
        )

    def bar(
        self,
        name: str,
        limit: float,
        most: bool,
        measure: Callable[[_Rows, Any, Row], tuple[float | None, str]],
        compute: str,
        weights: str,
        tokens: tuple[int, ...],
        kernel: str | None = None,
    ) -> Bar:
        figures = []
        for place in self.places(tokens):
            row = self.ours(place, compute, weights, kernel)
            if row is None:
                continue
            n, k, threads, count = place
            where = f"{n}×{k}, {threads} thread{'s' * (threads > 1)}" + (f", {count} tokens" if len(tokens) > 1 else "")
            figures.append(Figure(where, *measure(self, place, row)))
        return Bar(name, limit, most, tuple(figures))


def _first(rows: Any) -> Row | None:
    return next(iter(sorted(rows, key=lambda row: row["us"])), None)


def _ratio(other: Row | None, ours: Row) -> tuple[float | None, str]:
    if other is None:
        return None, ""
    return other["us"] / ours["us"], f"{other['source']} {other['name']} {other['activations']}"


def _share(table: _Rows, place: Any, row: Row) -> tuple[float | None, str]:
    return row["gbs"] / row["read_gbs"], f"{row['read_gbs']:.1f} GB/s"


def _over_peer(table: _Rows, place: Any, row: Row) -> tuple[float | None, str]:
    width = row["weights"].split()[0]
    peers = [r for r in table.at(place) if r["source"] != "quanto" and r["compute"] == row["compute"]]
    return _ratio(_first(r for r in peers if r["weights"].split()[0] == width), row)


def _over_any(table: _Rows, place: Any, row: Row) -> tuple[float | None, str]:
    peers = [r for r in table.at(place) if r["source"] != "quanto" and "4" in r["weights"].split()[0]]
    return _ratio(_first(r for r in peers if r["compute"] != "float"), row)


def _over_one(table: _Rows, place: Any, row: Row) -> tuple[float | None, str]:
    one = table.ours((*place[:3], 1), row["compute"], row["weights"])
    return (None, "") if one is None else (row["us"] / one["us"], f"{one['us']:.0f} us")


def _over_fbgemm(table: _Rows, place: Any, row: Row) -> tuple[float | None, str]:
    return _ratio(_first(r for r in table.at(place) if "fbgemm" in r["name"]), row)


def _over_sgemm(table: _Rows, place: Any, row: Row) -> tuple[float | None, str]:
    return _ratio(_first(r for r in table.at(place) if r["compute"] == "float" and r["activations"] == "float32"), row)


def _cliffs(table: _Rows) -> Bar:
    """The slowest of the less usual kernels, over the usual one of its precision, per weight, at each place."""
    figures = []
    for place in table.places((1, 8, 128)):
        others = [r for r in table.at(place) if r["source"] == "quanto" and "scaled" not in r["name"]]
        size, worst = place[0] * place[1], (0.0, "")
        others += [
            r
            for r in table.rows
            if abs(r["n"] * r["k"] - size) < size / 100
            and r["n"] % 16
            and r["source"] == "quanto"
            and (r["threads"], r["tokens"]) == place[2:]
        ]
        if len(others) < 8:
            continue  # the sweep is elsewhere
        for row in others:
            usual = table.ours(place, row["compute"], "int8" if row["weights"] == "int8" else "int4 g128")
            if usual is None or usual is row:
                continue
            ratio = row["us"] / (row["n"] * row["k"]) / (usual["us"] / size)
            odd = f" {row['n']}×{row['k']}" if row["n"] % 16 else ""
            worst = max(worst, (ratio, f"{row['name']} {row['weights']} {row['activations']}{odd}"))
        n, k, threads, tokens = place
        figures.append(Figure(f"{n}×{k}, {threads} thread{'s' * (threads > 1)}, {tokens} tokens", *worst))
    return Bar(
        "float8, nf4, fp16, bf16, group 32, odd sizes: slowest over int4 g128 (int8 over int8)",
        1.5,
        True,
        tuple(figures),
    )
