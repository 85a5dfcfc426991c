# SPDX-License-Identifier: Apache-2.0
"""`Scheme`: how a layer is quantized, as validated data, and `Rule`: which layers get it."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .blocks import choose_group_size
from .qtypes import QType, get_qtype

__all__ = ["Rule", "Scheme", "presets"]

_GRANULARITIES = ("tensor", "channel", "group", "block")
_SCALES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "e8m0": torch.float8_e8m0fnu,
    "e4m3": torch.float8_e4m3fn,
}
_DEFAULT_GROUP = 128
_LIMIT = 2**31  # no row is as long; what is above is a damaged file or a slip


@dataclass(frozen=True)
class Scheme:
    """How a layer's weights and activations are quantized. Everything left None takes the default said here.

    Attributes:
        weights: qtype name of the weights, or None to leave them floating.
        activations: qtype name of the inputs (`"int8"`, `"float8"` …), or None.
        group_size: elements along the input dimension that share a scale. Default: 128 for int4, int3, int2; 64 for
            nf4 and fp4; what the format fixes for mx and nv types; a whole row for 8 bits. Where it does not
            divide, see `quanto.blocks.choose_group_size`.
        granularity: `"tensor"`, `"channel"`, `"group"` or `"block"`. Default: group where there is a group size.
        block: `(rows, columns)` of 2-D blocks.
        symmetric: False gives integers a zero point. Default: symmetric for 8 bits, zero points below
            (round-to-nearest int4 in groups of 128 loses about a third less perplexity with them).
        zero_point: `"int"` for whole zero points, which other libraries' formats and some kernels need, or `"float"`,
            which are nearer. Default: int where activations are quantized too, else what the algorithm places.
        algorithm: name of a quantizer (see `docs/algorithms.md`). Default: `"absmax"` if symmetric, else `"minmax"`.
        scale_dtype: `"float32"`, `"bfloat16"`, `"float16"`, `"e8m0"` or `"e4m3"`. Default: the weight's own dtype,
            or what the qtype fixes.
        learned: True: while weights are trained, their scales and floating zero points are trained too (LSQ); see
            `quanto.nn.learned`. For integers.
        rank: of a low-rank correction beside the codes of a linear layer: two floating matrices whose product makes up
            for the largest part of the error; see `quanto.nn.correction`. Other layers have none.
        dynamic: True: activations get a scale per token at run time. False: one static scale from `Calibration`, and an
            error without. Default None: dynamic until calibrated.

    Raises:
        ValueError: where fields conflict; the message says which and what to do.
    """

    weights: str | None = None
    activations: str | None = None
    group_size: int | None = None
    granularity: str | None = None
    block: tuple[int, int] | None = None
    symmetric: bool | None = None
    algorithm: str | None = None
    scale_dtype: str | None = None
    dynamic: bool | None = None
    zero_point: str | None = None
    learned: bool | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        for field in ("weights", "activations"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, get_qtype(value).name)
        if self.block is not None:
            given_block: object = self.block
            if isinstance(given_block, str) or not isinstance(given_block, Iterable):
                raise ValueError(f"block must be two positive integers, got {given_block!r}")
            object.__setattr__(self, "block", tuple(self.block))
        given: object = self.scale_dtype
        if isinstance(given, torch.dtype):
            found = next((n for n, d in _SCALES.items() if d == given), None)
            object.__setattr__(self, "scale_dtype", found or str(given))
        self._validate()

    def _validate(self) -> None:
        if self.weights is None and self.activations is None:
            raise ValueError("a scheme needs weights or activations, such as Scheme(weights='int8')")
        if self.weights is None:
            raise ValueError("activations without weights are not supported: give weights too, such as weights='int8'")
        q = get_qtype(self.weights)
        if self.granularity is not None and self.granularity not in _GRANULARITIES:
            raise ValueError(f"granularity must be one of {', '.join(_GRANULARITIES)}, got {self.granularity!r}")
        if (self.block is not None) != (self.granularity == "block"):
            if self.block is None:
                raise ValueError("granularity='block' needs block=(rows, columns)")
            if self.granularity is not None:
                raise ValueError(f"block={self.block} conflicts with granularity={self.granularity!r}")
            object.__setattr__(self, "granularity", "block")
        if self.group_size is not None:
            if isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size <= 0:
                raise ValueError(f"group_size must be a positive integer, got {self.group_size!r}")
            if self.group_size >= _LIMIT:
                raise ValueError(f"group_size must be below 2**31, got {self.group_size}")
            if self.granularity not in (None, "group"):
                raise ValueError(f"group_size={self.group_size} conflicts with granularity={self.granularity!r}")
            if q.block not in (None, self.group_size):
                raise ValueError(f"{q.name} fixes groups of {q.block}; leave group_size out, got {self.group_size}")
        if q.block is not None and self.granularity not in (None, "group"):
            raise ValueError(f"{q.name} fixes groups of {q.block}; granularity={self.granularity!r} conflicts with it")
        if self.block is not None and (
            len(self.block) != 2 or not all(type(b) is int and 0 < b < _LIMIT for b in self.block)
        ):
            raise ValueError(f"block must be two positive integers below 2**31, got {self.block}")
        for field, kind in (("symmetric", bool), ("dynamic", bool), ("learned", bool), ("algorithm", str)):
            value = getattr(self, field)
            if value is not None and type(value) is not kind:
                raise ValueError(f"{field} must be a {kind.__name__} or None, got {value!r}")
        if (self.symmetric is False or self.zero_point is not None) and not q.is_integer:
            field = "symmetric=False" if self.symmetric is False else f"zero_point={self.zero_point!r}"
            raise ValueError(f"{q.name} has no zero points: {field} needs an integer qtype")
        if self.zero_point not in (None, "int", "float"):
            raise ValueError(f"zero_point must be 'int' or 'float', got {self.zero_point!r}")
        if self.zero_point is not None and (self.symmetric or self.algorithm == "absmax"):
            field = "symmetric=True" if self.symmetric else "algorithm='absmax'"
            raise ValueError(f"zero_point={self.zero_point!r} conflicts with {field}")
        if self.learned and not q.is_integer:
            raise ValueError(f"learned=True needs an integer qtype, not {q.name}")
        if self.rank is not None and (type(self.rank) is not int or not 0 < self.rank < _LIMIT):
            raise ValueError(f"rank must be a positive integer, got {self.rank!r}")
        if self.scale_dtype is not None:
            if self.scale_dtype not in _SCALES:
                raise ValueError(f"scale_dtype must be one of {', '.join(_SCALES)}, got {self.scale_dtype!r}")
            if q.scale_dtype not in (None, _SCALES[self.scale_dtype]):
                raise ValueError(f"{q.name} fixes its scale dtype; leave scale_dtype out, got {self.scale_dtype!r}")
        if self.activations is not None:
            a = get_qtype(self.activations)
            if a.bits != 8 or a.block is not None:
                raise ValueError(f"activations must be int8 or float8, got {a.name}")
        elif self.dynamic is not None:
            raise ValueError("dynamic is about activations: give activations too")

    @property
    def qtype(self) -> QType:
        """qtype of the weights."""
        assert self.weights is not None
        return get_qtype(self.weights)

    @property
    def is_symmetric(self) -> bool:
        """`symmetric` with its default applied."""
        if self.symmetric is not None:
            return self.symmetric
        if self.algorithm == "minmax" or self.zero_point is not None:
            return False
        return not (self.qtype.is_integer and self.qtype.bits < 8) or self.algorithm == "absmax"

    @property
    def quantizer(self) -> str:
        """`algorithm` with its default applied."""
        return self.algorithm or ("absmax" if self.is_symmetric else "minmax")

    def fitted(self) -> Scheme:
        """Itself; where it leaves the algorithm of zero points open, with that of `quanto.quantizers.fit` by name."""
        return dataclasses.replace(self, algorithm="mse") if self.algorithm is None and not self.is_symmetric else self

    def block_size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The block size of a weight of `shape` (`[…, out, in]`) under this scheme."""
        q, size = self.qtype, shape[-1]
        ones = (1,) * (len(shape) - 1)
        if self.granularity == "tensor":
            return ()
        if self.block is not None and self.granularity == "block":
            rows = min(self.block[0], shape[-2]) if len(shape) > 1 else 1
            return (*ones[:-1], rows, min(self.block[1], size)) if ones else (min(self.block[1], size),)
        if q.block is not None:
            return (*ones, min(q.block, size) or 1)
        group = self.group_size
        if group is None and (self.granularity == "group" or (self.granularity is None and q.bits < 8)):
            group = _DEFAULT_GROUP if q.is_integer else 64
        if group is None or self.granularity == "channel" or size == 0:
            return (*ones, max(size, 1))
        return (*ones, choose_group_size(size, group))

    def scales(self, dtype: torch.dtype) -> torch.dtype:
        """dtype of the scales of a weight of `dtype`."""
        if self.qtype.scale_dtype is not None:
            return self.qtype.scale_dtype
        if self.scale_dtype is not None:
            return _SCALES[self.scale_dtype]
        return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, those left at None omitted."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items() if v is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scheme:
        """The inverse of `to_dict`.

        Raises:
            ValueError: for unknown fields, or values that do not fit.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"unknown scheme fields {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        data = {k: tuple(v) if k == "block" and isinstance(v, list) else v for k, v in data.items()}
        return cls(**data)

    @classmethod
    def of(cls, value: Scheme | str | Mapping[str, Any]) -> Scheme:
        """A scheme from a preset or qtype name (`"w8a8"`, `"int4"`), a mapping of fields, or itself."""
        if isinstance(value, Scheme):
            return value
        if isinstance(value, str):
            return presets[value] if value in presets else cls(weights=value)
        if isinstance(value, QType):
            return cls(weights=value.name)
        return cls.from_dict(value)

    def __str__(self) -> str:
        parts = [self.weights or ""]
        if self.granularity:
            parts.append(self.granularity)
        if self.group_size:
            parts.append(f"g{self.group_size}")
        if self.activations:
            parts.append(f"x {self.activations} {'static' if self.dynamic is False else 'dynamic'}")
        if self.zero_point:
            parts.append(f"{self.zero_point} zero points")
        if self.algorithm:
            parts.append(self.algorithm)
        if self.learned:
            parts.append("learned")
        if self.rank:
            parts.append(f"rank {self.rank}")
        return " ".join(parts)


#: schemes by name.
presets: dict[str, Scheme] = {
    "w8a16": Scheme("int8"),
    "w8a8": Scheme("int8", "int8"),
    "w8a8-static": Scheme("int8", "int8", dynamic=False),
    "w8a8-float8": Scheme("float8_e4m3fn", "float8_e4m3fn"),
    "w4a16": Scheme("int4"),
    "w4a16-symmetric": Scheme("int4", symmetric=True),
    "w4a8": Scheme("int4", "int8"),
    "w3a16": Scheme("int3"),
    "w2a16": Scheme("int2", group_size=32),
}


@dataclass(frozen=True)
class Rule:
    """Which modules get which scheme. In a list of rules the first that matches decides.

    Attributes:
        pattern: a glob on the dotted name (`"*.mlp.*"`, `"lm_head"`), a compiled regular expression or `"re:…"` (both
            must match the whole name), or a callable `(name, module) -> bool`.
        scheme: what the module gets; None leaves it as it is.
        parameters: names of raw parameters to quantize in a module that has no quantized twin, such as the 3-D weights
            of fused experts. A name ending in `.T` says that the contraction runs over the second last dimension.
    """

    pattern: str | re.Pattern[str] | Callable[[str, torch.nn.Module], bool]
    scheme: Scheme | None
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scheme is not None:
            object.__setattr__(self, "scheme", Scheme.of(self.scheme))
        given: object = self.parameters
        if isinstance(given, str):
            raise TypeError(f"parameters must be a sequence of names, got the string {given!r}")
        object.__setattr__(self, "parameters", tuple(self.parameters))
        if isinstance(self.pattern, str) and self.pattern.startswith("re:"):
            try:
                object.__setattr__(self, "pattern", re.compile(self.pattern[3:]))
            except re.error as error:
                raise ValueError(f"rule {self.pattern!r} is not a regular expression: {error}") from None

    def matches(self, name: str, module: torch.nn.Module) -> bool:
        """Whether the rule speaks of this module."""
        if isinstance(self.pattern, str):
            return fnmatch.fnmatchcase(name, self.pattern)
        if isinstance(self.pattern, re.Pattern):
            return self.pattern.fullmatch(name) is not None
        return bool(self.pattern(name, module))
