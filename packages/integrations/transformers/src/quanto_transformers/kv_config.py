# SPDX-License-Identifier: Apache-2.0
"""`KVCacheConfig`: how a key and value cache is quantized."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quanto.qtypes import get_qtype

__all__ = ["KVCacheConfig"]

_BITS = {8: "int8", 4: "int4", 3: "int3", 2: "int2"}
#: names that transformers' `cache_config` and this class have for the same thing.
_STOCK = {"q_group_size": "group_size", "nbits": "weights"}
_AXES = {"axis_key": "per_channel_keys", "axis_value": "per_channel_values"}
_IGNORED = ("backend", "device", "compute_dtype")


@dataclass(frozen=True)
class KVCacheConfig:
    """A quantized key and value cache; `generate(cache_config=…)` takes the same fields.

    Attributes:
        weights: qtype of keys and values: `"int8"`, `"int4"`, `"int2"`, `"float8"` …
        group_size: how many elements share a scale: tokens of one channel, or channels of one token.
        residual_length: the newest tokens, which stay floating: quantized once, when so many have come together, and
            never again.
        per_channel_keys: whether keys have a scale per channel, over groups of tokens, rather than per token. Channels
            of keys differ by orders of magnitude in many models (KIVI, Liu et al., 2024, arXiv:2402.02750).
        per_channel_values: the same for values, whose channels don't.
    """

    weights: str = "int4"
    group_size: int = 64
    residual_length: int = 128
    per_channel_keys: bool = True
    per_channel_values: bool = False

    def __post_init__(self) -> None:
        qtype = get_qtype(self.weights)
        object.__setattr__(self, "weights", qtype.name)
        if qtype.block is not None:
            raise ValueError(f"kv_cache: {qtype.name} fixes its blocks; take an int or float8 type")
        for name in ("group_size", "residual_length"):
            value = getattr(self, name)
            if type(value) is not int or value <= 0:
                raise ValueError(f"kv_cache: {name} must be a positive integer, got {value!r}")
        for name in ("per_channel_keys", "per_channel_values"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"kv_cache: {name} must be True or False, got {getattr(self, name)!r}")
        if self.group_size * qtype.bits % 8:
            raise ValueError(f"kv_cache: groups of {self.group_size} {qtype.name} are no whole bytes")

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> KVCacheConfig:
        """Reads this class' fields, or those of transformers' `cache_config`.

        These are `nbits` (2, 3, 4, 8, or the name of a qtype), `q_group_size`, `residual_length`, and `axis_key` and
        `axis_value`: 0 for a scale per token, -1 for one per channel.

        Raises:
            ValueError: for an unknown or unfit field.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"kv_cache must be a mapping, got {data!r}")
        fields: dict[str, Any] = {}
        for key, value in data.items():
            name = _STOCK.get(key, key)
            if key == "nbits" and not isinstance(value, str):
                if value not in _BITS:
                    raise ValueError(f"kv_cache: nbits must be one of {', '.join(map(str, _BITS))}, got {value!r}")
                value = _BITS[value]
            if key in _AXES:
                if value not in (0, -1):
                    raise ValueError(f"kv_cache: {key} must be 0 or -1, got {value!r}")
                fields[_AXES[key]] = value == -1
            elif name in {f.name for f in dataclasses.fields(cls)}:
                fields[name] = value
            elif key not in _IGNORED:
                known = ", ".join(f.name for f in dataclasses.fields(cls))
                raise ValueError(f"kv_cache has no field {key!r}; known: {known}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    def to_cache_config(self) -> dict[str, Any]:
        """The same in transformers' words, as `generation_config.cache_config` holds them."""
        return {
            "backend": "quanto",
            "nbits": self.weights,
            "q_group_size": self.group_size,
            "residual_length": self.residual_length,
            "axis_key": -1 if self.per_channel_keys else 0,
            "axis_value": -1 if self.per_channel_values else 0,
        }
