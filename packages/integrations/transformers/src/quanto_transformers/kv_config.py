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
_IGNORED = ("backend", "device", "compute_dtype")


@dataclass(frozen=True)
class KVCacheConfig:
    """A quantized key and value cache; `generate(cache_config=…)` takes the same fields.

    Attributes:
        weights: qtype of keys and values: `"int8"`, `"int4"`, `"int2"`, `"float8"` …
        group_size: how many elements share a scale: tokens of one channel for keys, channels of one token for values.
        residual_length: the newest tokens, which stay floating: quantized once, when so many have come together, and
            never again.
        per_channel_keys: whether keys have a scale per channel, over groups of tokens, rather than per token. Channels
            of keys differ by orders of magnitude in many models (KIVI, Liu et al., 2024, arXiv:2402.02750).
    """

    weights: str = "int4"
    group_size: int = 64
    residual_length: int = 128
    per_channel_keys: bool = True

    def __post_init__(self) -> None:
        qtype = get_qtype(self.weights)
        object.__setattr__(self, "weights", qtype.name)
        if qtype.block is not None:
            raise ValueError(f"kv_cache: {qtype.name} fixes its blocks; take an int or float8 type")
        for name in ("group_size", "residual_length"):
            value = getattr(self, name)
            if type(value) is not int or value <= 0:
                raise ValueError(f"kv_cache: {name} must be a positive integer, got {value!r}")
        if type(self.per_channel_keys) is not bool:
            raise ValueError(f"kv_cache: per_channel_keys must be True or False, got {self.per_channel_keys!r}")

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> KVCacheConfig:
        """Reads this class' fields, or those of transformers' `cache_config` such as `nbits` and `axis_key`.

        `axis_key=-1` asks for keys per channel, as does leaving it out; `axis_key=0` for keys per token.

        Raises:
            ValueError: for an unknown or unfit field.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"kv_cache must be a mapping, got {data!r}")
        fields: dict[str, Any] = {}
        for key, value in data.items():
            name = _STOCK.get(key, key)
            if key == "nbits":
                if value not in _BITS:
                    raise ValueError(f"kv_cache: nbits must be one of {', '.join(map(str, _BITS))}, got {value!r}")
                value = _BITS[value]
            if key in ("axis_key", "axis_value"):
                if value not in (0, -1):
                    raise ValueError(f"kv_cache: {key} must be 0 or -1, got {value!r}")
                if key == "axis_key":
                    fields["per_channel_keys"] = value == -1
            elif name in {f.name for f in dataclasses.fields(cls)}:
                fields[name] = value
            elif key not in _IGNORED:
                known = ", ".join(f.name for f in dataclasses.fields(cls))
                raise ValueError(f"kv_cache has no field {key!r}; known: {known}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)
