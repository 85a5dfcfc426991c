# SPDX-License-Identifier: Apache-2.0
"""The qtypes of optimum.quanto: a name, a storage dtype and a range."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = [
    "qfloat8",
    "qfloat8_e4m3fn",
    "qfloat8_e4m3fnuz",
    "qfloat8_e5m2",
    "qint2",
    "qint4",
    "qint8",
    "qtype",
    "qtypes",
]


@dataclass(frozen=True)
class qtype:
    """One quantized data type.

    Attributes:
        name: as files have it, for example `qint4`.
        is_floating_point: whether its values are floats.
        bits: of a value.
        dtype: in which values are stored before packing.
        qmin, qmax: smallest and largest value.
    """

    name: str
    is_floating_point: bool
    bits: int
    dtype: torch.dtype
    qmin: float
    qmax: float

    def __str__(self) -> str:
        return f"quanto.{self.name}"

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def core(self) -> str:
        """The name of the same qtype in quanto."""
        return self.name[1:]


def _integer(bits: int) -> qtype:
    return qtype(f"qint{bits}", False, bits, torch.int8, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _float8(name: str) -> qtype:
    info = torch.finfo(getattr(torch, name))
    return qtype(f"q{name}", True, 8, info_dtype(name), info.min, info.max)


def info_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name."""
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


qint2, qint4, qint8 = _integer(2), _integer(4), _integer(8)
qfloat8_e4m3fn, qfloat8_e4m3fnuz = _float8("float8_e4m3fn"), _float8("float8_e4m3fnuz")
qfloat8_e5m2 = _float8("float8_e5m2")
qfloat8 = qfloat8_e4m3fn

#: by name; `qfloat8` is another name of `qfloat8_e4m3fn`.
qtypes = {q.name: q for q in (qint2, qint4, qint8, qfloat8_e4m3fn, qfloat8_e4m3fnuz, qfloat8_e5m2)}
qtypes["qfloat8"] = qfloat8


def find(value: str | qtype | None, argument: str) -> qtype | None:
    """A qtype by itself, by name, or None.

    Raises:
        ValueError: for a name that is not one.
    """
    if value is None or isinstance(value, qtype):
        return value
    if value not in qtypes:
        raise ValueError(f"{argument} must be one of {', '.join(qtypes)}, got {value!r}")
    return qtypes[value]
