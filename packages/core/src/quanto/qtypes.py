# SPDX-License-Identifier: Apache-2.0
"""Quantized data types: what one code means.

A `QType` is a row of data. Integers are stored offset-binary when they are narrower than a byte, so that the code of
the smallest value is 0 and a symmetric weight is an affine one whose zero point is 0:

    int4   value -8 … 7     code = value + 8      nibble 0x0 … 0xF
    int3   value -4 … 3     code = value + 4      3 bits
    int2   value -2 … 1     code = value + 2      2 bits
    int8   value -128 … 127 code = value          two's complement, torch.int8

Float8 codes are the IEEE-like bit patterns, always held as `torch.uint8` so that `module.to(torch.float16)` and mixed
precision wrappers, which cast every floating tensor, cannot touch them. Four-bit floats are an index into `table`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = [
    "QType",
    "get_qtype",
    "qfloat8",
    "qfloat8_e4m3fn",
    "qfloat8_e4m3fnuz",
    "qfloat8_e5m2",
    "qfloat8_e5m2fnuz",
    "qfp4",
    "qint2",
    "qint3",
    "qint4",
    "qint8",
    "qmxfp4",
    "qmxfp8",
    "qnf4",
    "qnvfp4",
    "qtypes",
    "register_qtype",
]


@dataclass(frozen=True)
class QType:
    """One quantized data type.

    Attributes:
        name: the name used in files, schemes and error messages.
        bits: bits per code, 1 to 8.
        element: `torch.int8` for integers, a float8 dtype, or None when `table` gives the values.
        table: the value of each code, `2**bits` of them, or None.
        block: the block length the format fixes along the last dimension, or None if the user chooses.
        scale_dtype: the scale's dtype where the format fixes it, or None.
        two_level: whether a float32 scale of the whole tensor multiplies the block scales (NVFP4).
    """

    name: str
    bits: int
    element: torch.dtype | None = None
    table: tuple[float, ...] | None = None
    block: int | None = None
    scale_dtype: torch.dtype | None = None
    two_level: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"qtype {self.name!r}: bits must be 1 to 8, got {self.bits}")
        if (self.element is None) == (self.table is None):
            raise ValueError(f"qtype {self.name!r}: give either element or table")
        if self.table is not None and len(self.table) != 2**self.bits:
            raise ValueError(f"qtype {self.name!r}: {self.bits} bits need {2**self.bits} table values")
        if self.is_float8 and self.bits != 8:
            raise ValueError(f"qtype {self.name!r}: a float8 element has 8 bits")

    @property
    def is_integer(self) -> bool:
        """Whether elements are integers, which may have zero points."""
        return self.element == torch.int8

    @property
    def is_float8(self) -> bool:
        """Whether codes are the bit patterns of one of torch's floats of 8 bits."""
        return self.element is not None and self.element.is_floating_point

    @property
    def qmin(self) -> int:
        """Smallest integer value (integers only)."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest integer value (integers only)."""
        return (1 << (self.bits - 1)) - 1

    @property
    def amax(self) -> float:
        """The magnitude that a symmetric scale maps the largest input to.

        Integers use half of their range, `(2**bits - 1) / 2` (the rule of compressed-tensors): every input, the
        largest of either sign included, then lies within half a step of a code, and no code is left unused.
        """
        if self.is_integer:
            return ((1 << self.bits) - 1) / 2
        if self.table is not None:
            return max(abs(v) for v in self.table)
        assert self.element is not None
        return torch.finfo(self.element).max

    @property
    def storage(self) -> torch.dtype:
        """dtype of the stored codes: int8 for int8, uint8 for all others."""
        return torch.int8 if self.is_integer and self.bits == 8 else torch.uint8

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"quanto.q{self.name}"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by name where the table knows it, so that identity survives."""
        if qtypes.get(self.name) == self:
            return get_qtype, (self.name,)
        return super().__reduce__()  # type: ignore[return-value]


# OCP Microscaling Formats (MX) v1.0, table 5 (E2M1): sign in bit 3.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

# QLoRA (Dettmers et al., 2023, arXiv:2305.14314), appendix E: quantiles of a normal distribution with an exact zero.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

qint8 = QType("int8", 8, torch.int8)
qint4 = QType("int4", 4, torch.int8)
qint3 = QType("int3", 3, torch.int8)
qint2 = QType("int2", 2, torch.int8)
qfloat8_e4m3fn = QType("float8_e4m3fn", 8, torch.float8_e4m3fn)
qfloat8_e4m3fnuz = QType("float8_e4m3fnuz", 8, torch.float8_e4m3fnuz)
qfloat8_e5m2 = QType("float8_e5m2", 8, torch.float8_e5m2)
qfloat8_e5m2fnuz = QType("float8_e5m2fnuz", 8, torch.float8_e5m2fnuz)
qnf4 = QType("nf4", 4, table=_NF4)
qfp4 = QType("fp4", 4, table=_E2M1)
qmxfp4 = QType("mxfp4", 4, table=_E2M1, block=32, scale_dtype=torch.float8_e8m0fnu)
qmxfp8 = QType("mxfp8", 8, torch.float8_e4m3fn, block=32, scale_dtype=torch.float8_e8m0fnu)
qnvfp4 = QType("nvfp4", 4, table=_E2M1, block=16, scale_dtype=torch.float8_e4m3fn, two_level=True)

qfloat8 = qfloat8_e4m3fn

#: every known qtype by name; plugins add theirs through the `register_qtypes` hook.
qtypes: dict[str, QType] = {
    q.name: q
    for q in (
        qint8,
        qint4,
        qint3,
        qint2,
        qfloat8_e4m3fn,
        qfloat8_e4m3fnuz,
        qfloat8_e5m2,
        qfloat8_e5m2fnuz,
        qnf4,
        qfp4,
        qmxfp4,
        qmxfp8,
        qnvfp4,
    )
}

_ALIASES = {"float8": "float8_e4m3fn", "fp8": "float8_e4m3fn", "fp4_e2m1": "fp4", "mxfp8_e4m3": "mxfp8"}


def register_qtype(qtype: QType) -> None:
    """Adds a qtype to the table.

    Raises:
        ValueError: if another qtype has the name already.
    """
    known = qtypes.get(qtype.name) or qtypes.get(_ALIASES.get(qtype.name, ""))
    if known is not None and known != qtype:
        raise ValueError(f"qtype {qtype.name!r} is registered already as {known.name!r} with another meaning")
    qtypes[qtype.name] = qtype


def get_qtype(name: str | QType | torch.dtype) -> QType:
    """Returns the qtype of that name (`"int4"`, `"qint4"`, `"float8"`, `"torch.int8"` …); a `QType` as it is.

    Raises:
        ValueError: if no such qtype is known, naming those that are.
    """
    if isinstance(name, QType):
        return name
    if not isinstance(name, (str, torch.dtype)):
        raise TypeError(f"a qtype is a name, a dtype or a quanto.QType, got {type(name).__name__}")
    name = str(name).removeprefix("torch.")
    for candidate in (name, _ALIASES.get(name, ""), name[1:] if name.startswith("q") else ""):
        if candidate in qtypes:
            return qtypes[candidate]
        if candidate in _ALIASES:
            return qtypes[_ALIASES[candidate]]
    from .plugins.manager import plugins

    if plugins.load():  # a plugin may bring it; only now is it worth looking
        return get_qtype(name)
    known = ", ".join(sorted(qtypes))
    raise ValueError(f"unknown qtype {name!r}; known: {known}; others come with plugins, which `quanto info` lists")
