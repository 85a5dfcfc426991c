# SPDX-License-Identifier: Apache-2.0
"""Reads the signatures of kernels and the structs of their arguments from Metal source."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

__all__ = ["Kernel", "Parameter", "preprocessed", "read"]

# Attributes of a thread's place: the C++ that gives them, and whether threads with them may depend on each other.
PLACES = {
    "thread_position_in_grid": ("metal::uint3{at.grid[0], at.grid[1], at.grid[2]}", "uint3", False),
    "threadgroup_position_in_grid": ("metal::uint3{at.group[0], at.group[1], at.group[2]}", "uint3", False),
    "thread_index_in_threadgroup": ("at.index", "uint", True),
    "simdgroup_index_in_threadgroup": ("at.simdgroup", "uint", True),
    "thread_index_in_simdgroup": ("at.lane", "uint", True),
}
_PARAMETER = re.compile(r"^(?:(device|constant) )?(const )?(\w+)\s*([*&]?)\s*(\w+) \[\[(\w+)(?:\((\d+)\))?\]\]$")


@dataclass(frozen=True)
class Parameter:
    """One of a kernel's: a buffer, with its index, or a thread's place."""

    space: str
    const: bool
    type: str
    mark: str
    name: str
    attribute: str
    index: int | None


@dataclass(frozen=True)
class Kernel:
    """A kernel: buffers in the order of their indices, then places."""

    name: str
    buffers: tuple[Parameter, ...]
    places: tuple[Parameter, ...]

    @property
    def together(self) -> bool:
        """Whether its threads may meet."""
        return any(PLACES[p.attribute][2] for p in self.places)


def preprocessed(source: str) -> str:
    """The source with its macros expanded, as Metal would see it, without what it includes."""
    lines = [line for line in source.splitlines() if not line.startswith("#include")]
    command = ["g++", "-E", "-P", "-x", "c++", "-undef", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    return done.stdout


def read(source: str) -> tuple[dict[str, Kernel], dict[str, tuple[str, ...]]]:
    """The kernels and the structs of nothing but `int` (name to fields) of a Metal source.

    Raises:
        ValueError: if a signature is not of the form that Metal and torch take.
    """
    text = preprocessed(source)
    kernels = {name: _kernel(name, body) for name, body in re.findall(r"\bkernel void (\w+)\((.*?)\)\s*\{", text, re.S)}
    structs = {
        name: tuple(re.findall(r"\w+", re.sub(r"\bint\b", "", body)))
        for name, body in re.findall(r"\bstruct (\w+)\s*\{((?:\s*int [\w\s,]+;)+)\s*\}", text)
    }
    return kernels, structs


def _kernel(name: str, body: str) -> Kernel:
    found = [_parameter(name, " ".join(part.split())) for part in body.split(",")]
    buffers = [p for p in found if p.attribute == "buffer"]
    if [p.index for p in buffers] != list(range(len(buffers))):
        raise ValueError(f"{name}: buffers must be 0, 1, … in order, as torch binds them")
    places = [p for p in found if p.attribute != "buffer"]
    if found != buffers + places:
        raise ValueError(f"{name}: buffers come before places")
    for p in places:
        if p.type != PLACES[p.attribute][1]:
            raise ValueError(f"{name}: {p.attribute} must be {PLACES[p.attribute][1]}, not {p.type}")
    return Kernel(name, tuple(buffers), tuple(places))


def _parameter(kernel: str, text: str) -> Parameter:
    found = _PARAMETER.match(text)
    if found is None:
        raise ValueError(f"{kernel}: cannot read the parameter {text!r}")
    space, const, type_, mark, name, attribute, index = found.groups()
    if attribute == "buffer" and (space, mark) not in (("device", "*"), ("constant", "&")):
        raise ValueError(f"{kernel}: {name} must be a device pointer or a constant reference")
    if attribute != "buffer" and attribute not in PLACES:
        raise ValueError(f"{kernel}: unknown attribute {attribute}")
    return Parameter(space or "", bool(const), type_, mark, name, attribute, None if index is None else int(index))
