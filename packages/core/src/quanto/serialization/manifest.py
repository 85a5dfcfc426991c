# SPDX-License-Identifier: Apache-2.0
"""`quanto.json`: the small file that says what a folder holds. Reading it trusts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..nn.slot import ARRANGEMENTS
from ..scheme import Scheme

__all__ = ["FILE", "VERSION", "FormatError", "Manifest"]

FILE = "quanto.json"
FORMAT = "quanto"
VERSION = 1
MAX_BYTES = 64 * 2**20
_DTYPES = ("float64", "float32", "float16", "bfloat16")


class FormatError(ValueError):
    """A saved folder is damaged, hostile or too new; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Manifest:
    """What a folder holds.

    Attributes:
        modules: how each quantized module is quantized (see `quanto.quantization_map`).
        shards: file name and size in bytes of each safetensors file.
        tensors: index of the shard that holds each tensor.
        aliases: names of tied tensors, each with the name under which the tensor is stored.
    """

    modules: dict[str, dict[str, Any]]
    shards: tuple[tuple[str, int], ...]
    tensors: dict[str, int]
    aliases: dict[str, str]

    def dump(self) -> str:
        """The JSON text."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "quanto_core": __version__,
            "modules": self.modules,
            "shards": [{"file": name, "bytes": size} for name, size in self.shards],
            "tensors": self.tensors,
            "aliases": self.aliases,
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads and checks a folder's JSON.

        Raises:
            FormatError: if it is missing, damaged, hostile, or of a newer version.
        """
        path = folder / FILE
        try:
            if path.stat().st_size > MAX_BYTES:
                raise FormatError(f"{path} is larger than {MAX_BYTES} bytes")
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FormatError(
                f"{folder} holds no {FILE}: it is not a saved quanto model, or saving did not finish"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(f"{path} cannot be read: {error}") from None
        try:
            data = json.loads(text, object_pairs_hook=_no_doubles, parse_constant=_no_constants)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path} is not sound JSON: {error}") from None
        return cls._parse(data, path)

    @classmethod
    def _parse(cls, data: Any, path: Path) -> Manifest:
        def need(condition: bool, what: str) -> None:
            if not condition:
                raise FormatError(f"{path}: {what}")

        need(isinstance(data, dict), "must be a JSON object")
        need(data.get("format") == FORMAT, f"format must be {FORMAT!r}, got {data.get('format')!r}")
        version = data.get("version")
        need(type(version) is int and version > 0, f"version must be a positive integer, got {version!r}")
        need(version <= VERSION, f"version {version} is newer than this quanto-core reads ({VERSION}): upgrade it")
        for key, kind in (("modules", dict), ("shards", list), ("tensors", dict), ("aliases", dict)):
            need(isinstance(data.get(key), kind), f"{key} must be a JSON {'object' if kind is dict else 'array'}")
        shards: list[tuple[str, int]] = []
        for entry in data["shards"]:
            need(isinstance(entry, dict), "each of shards must be an object")
            name, size = entry.get("file"), entry.get("bytes")
            need(_is_plain(name), f"shard name {name!r} is not a plain file name ending in .safetensors")
            need(type(size) is int and 8 <= size < 2**63, f"shard {name!r}: bytes must be a size, got {size!r}")
            need(name not in [s for s, _ in shards], f"shard {name!r} is listed twice")
            shards.append((name, size))
        for name, index in data["tensors"].items():
            need(type(index) is int and 0 <= index < len(shards), f"tensor {name!r} is in no listed shard: {index!r}")
        for name, target in data["aliases"].items():
            need(name not in data["tensors"], f"{name!r} is both a tensor and an alias")
            need(isinstance(target, str) and target in data["tensors"], f"alias {name!r} points to nothing: {target!r}")
        for name, entry in data["modules"].items():
            try:
                _check_module(entry)
            except (ValueError, TypeError) as error:
                raise FormatError(f"{path}: module {name!r}: {error}") from None
        return cls(data["modules"], tuple(shards), data["tensors"], data["aliases"])


def _check_module(entry: Any) -> None:
    if not isinstance(entry, dict) or set(entry) - {"scheme", "parameters", "dtype"}:
        raise ValueError("must be an object of scheme, dtype and parameters")
    if not isinstance(entry.get("scheme"), dict):
        raise ValueError("scheme must be an object")
    scheme = Scheme.from_dict(entry["scheme"])
    for size in (scheme.group_size or 1, *(scheme.block or ())):
        if size >= 2**31:
            raise ValueError(f"a group of {size} is too large")
    arrangements, dtypes = entry.get("parameters", {}), entry.get("dtype", {})
    if not isinstance(arrangements, dict) or not isinstance(dtypes, dict):
        raise ValueError("parameters and dtype must be objects")
    if any(a not in ARRANGEMENTS for a in arrangements.values()):
        raise ValueError(f"arrangements must be among {', '.join(ARRANGEMENTS)}")
    if any(d not in _DTYPES or not isinstance(getattr(torch, d), torch.dtype) for d in dtypes.values()):
        raise ValueError(f"dtype must be among {', '.join(_DTYPES)}")


def _is_plain(name: Any) -> bool:
    """A name that stays in its folder on every system."""
    if not isinstance(name, str) or not name.endswith(".safetensors") or not name.isprintable() or len(name) > 200:
        return False
    return not name.startswith((".", "~")) and not any(c in name for c in "/\\:\0")


def _no_doubles(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} appears twice")
        found[key] = value
    return found


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
