# SPDX-License-Identifier: Apache-2.0
"""The operators of the shared library, declared to torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from quanto import ops

from .fakes import FAKES, on_one_device

__all__ = ["instruction_set", "instruction_sets", "load", "operator", "use"]

_WEIGHT = "Tensor codes, Tensor scale, Tensor? zero_point"
_LAYOUT = f"({_WEIGHT}, str qtype, int[] block_size, int size) -> (Tensor, Tensor, Tensor)"
_WEIGHTED = ("linear", "linear_integer", "scaled_linear", "dequantize", "embedding")
_CODES = ("dynamic_quantize", "quantize", "pack", "unpack")

# The instruction set that `use` has put in the place of the one chosen at first use.
_named = [""]


@cache
def load() -> None:
    """Defines the operators and loads their implementations, once.

    Raises:
        OSError: if the shared library is missing or does not fit this machine.
    """
    torch.ops.load_library(_shared_library())  # if it fails, nothing is defined that a second try would define again
    library = torch.library.Library("quanto_cpu", "DEF")
    load.__dict__["library"] = library  # lives as long as the process
    for name, schema, fake in _operators():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"quanto_cpu::{name}", on_one_device(name, schema, fake), lib=library)
    for schema in ("isa() -> str", "isas() -> str", "select_isa(str name) -> ()"):
        library.define(schema)


def _operators() -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Name, schema and fake implementation of each that computes."""
    for name in _WEIGHTED:
        like = name.removesuffix("_integer")
        for suffix in ("", "_panels"):
            yield name + suffix, ops.SCHEMAS[like], FAKES.get(like) or ops.FAKES[like]
    for name in _CODES:
        yield name, ops.SCHEMAS[name], ops.FAKES[name]
    for name in ("pack_panels", "unpack_panels"):
        yield name, _LAYOUT, FAKES[name]


def _shared_library() -> Path:
    """The file that was built for this package; an editable install keeps it apart from the sources."""
    import quanto_backend_cpu

    found = [path for folder in quanto_backend_cpu.__path__ for path in Path(folder).glob("quanto_cpu.*")]
    if not found:
        raise OSError("quanto_backend_cpu holds no quanto_cpu library: it was not built; reinstall the package")
    return found[0]


def operator(name: str) -> Any:
    """The overload of `quanto_cpu::<name>`."""
    load()
    return getattr(torch.ops.quanto_cpu, name).default


def instruction_set() -> str:
    """The instruction set in use: the best of this processor, or the one that `QUANTO_CPU_ISA` names."""
    return str(operator("isa")())


def instruction_sets() -> list[str]:
    """Those that this processor has, best first."""
    return str(operator("isas")()).split(",")


@contextmanager
def use(name: str) -> Iterator[None]:
    """Uses another instruction set within the block, in the whole process: for tests and measurements.

    Raises:
        RuntimeError: if the processor lacks it, or there is none of that name.
    """
    before = _named[0]
    operator("select_isa")(name)
    _named[0] = name
    try:
        yield
    finally:
        _named[0] = before
        operator("select_isa")(before)
