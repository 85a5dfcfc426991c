# SPDX-License-Identifier: Apache-2.0
"""The kernels as tables: one line each for a pipe, by operator for a terminal."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from ..kernels.spec import FLOATS
from .kernel_report import KernelReport, dtype_name
from .table import Table

__all__ = ["tables"]

_WIDE = 110  # columns that a terminal needs for an origin and a priority of their own
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
_FLOATS = {dtype_name(dtype) for dtype in FLOATS}


def tables(kernels: tuple[KernelReport, ...], width: int | None, every: bool = False) -> list[Table]:
    """The kernels, and for a terminal the sentences about those that can't be used beside them.

    Args:
        kernels: in the order of `kernel_reports`.
        width: of the terminal; None for lines of any length.
        every: whether to name each reference, also of operators that have nothing else.
    """
    if width is None:
        return [_lines(kernels)]
    found = [(_wide if width >= _WIDE else _narrow)(_by_operator(kernels, every))]
    refused = tuple((k.name, k.status) for k in kernels if not k.ready)
    return found + ([Table("kernels that can't be used", ("kernel", "why"), refused, whole=(0,))] if refused else [])


def _lines(kernels: tuple[KernelReport, ...]) -> Table:
    columns = ("operator", "kernel", "device", "weights", "activations", "priority", "origin", "status")
    rows = []
    for k in kernels:
        status = k.status + (", forced by QUANTO_KERNELS" if k.selected == "forced" else "")
        dtypes = _names(k.dtypes)
        activations = f"{_names(_quantized(k))} ({dtypes})" if _quantized(k) else dtypes
        rows.append((k.op, k.name, k.device, _names(k.qtypes), activations, str(k.priority), k.origin, status))
    return Table("kernels", columns, tuple(rows))


def _by_operator(kernels: tuple[KernelReport, ...], every: bool) -> dict[str, list[KernelReport]]:
    """The kernels under a heading each; unless every is wanted, references that stand alone under a common one."""
    operators = {op: list(found) for op, found in groupby(kernels, key=lambda k: k.op)}
    alone = [] if every else [op for op, found in operators.items() if len(found) == 1 and found[0].qtypes is None]
    shown = {op: found for op, found in operators.items() if op not in alone}
    if alone:
        shown["other operators"] = [replace(operators[alone[0]][0], name="reference.*")]
    return shown


def _wide(operators: dict[str, list[KernelReport]]) -> Table:
    rows: list[tuple[str, ...]] = []
    for op, kernels in operators.items():
        rows.append((op,))
        rows += [(f"  {k.name}", k.device, " ".join(_takes(k)), str(k.priority), k.origin, _status(k)) for k in kernels]
    columns = ("kernel", "device", "takes", "priority", "origin", "status")
    return Table("kernels", columns, tuple(rows), whole=(0, 1, 3, 4, 5))


def _narrow(operators: dict[str, list[KernelReport]]) -> Table:
    rows: list[tuple[str, ...]] = []
    for op, kernels in operators.items():
        rows.append((op,))
        for k in kernels:
            name = f"  {k.name}\n  {k.origin}, priority {k.priority}"
            rows.append((name, k.device, "\n".join(_takes(k)), _status(k)))
    return Table("kernels", ("kernel", "device", "takes", "status"), tuple(rows), whole=(0, 1, 3))


def _status(kernel: KernelReport) -> str:
    if kernel.selected == "blocked" or (kernel.ready and kernel.selected):
        return kernel.selected
    return "ready" if kernel.ready else "no"


def _takes(kernel: KernelReport) -> list[str]:
    """Weights, and the activations that they are multiplied with."""
    if kernel.dtypes is None:
        return ["anything"]
    quantized = _names(_quantized(kernel))
    if set(kernel.dtypes) == _FLOATS:
        return [_names(kernel.qtypes), f"x {quantized or 'any float'}"]
    dtypes = ", ".join(_SHORT.get(name, name) for name in kernel.dtypes)
    return [_names(kernel.qtypes), f"x {quantized} ({dtypes})" if quantized else f"x {dtypes}"]


def _quantized(kernel: KernelReport) -> tuple[str, ...]:
    return tuple(name for name in kernel.activations or () if name != "floating")


def _names(names: tuple[str, ...] | None) -> str:
    return "any" if names is None else ", ".join(names)
