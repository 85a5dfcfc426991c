# SPDX-License-Identifier: Apache-2.0
"""`quanto.json`: the small file that says what a folder holds. Reading it trusts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..mapping import Entry
from .errors import FormatError
from .folder import is_plain, locate
from .strict_json import parse_object
from .views import VIEWS

__all__ = ["FILE", "VERSION", "Manifest"]

FILE = "quanto.json"
FORMAT = "quanto"
VERSION = 1
_MAX_BYTES = 64 * 2**20
_KEYS = {"format", "version", "quanto_core", "modules", "shards", "tensors", "aliases", "views"}


@dataclass(frozen=True)
class Manifest:
    """What a folder holds.

    Attributes:
        modules: how each quantized module is quantized (see `quanto.quantization_map`).
        shards: file name and size in bytes of each safetensors file.
        tensors: index of the shard that holds each tensor.
        aliases: further names of tied tensors, each with the name under which the tensor is stored.
        views: dtype of each tensor that is stored as another one (see `quanto.serialization.views`).
    """

    modules: dict[str, dict[str, Any]]
    shards: tuple[tuple[str, int], ...]
    tensors: dict[str, int]
    aliases: dict[str, str]
    views: dict[str, str]

    def dump(self) -> str:
        """The JSON text: keys sorted, a line for each module, shard, tensor and alias."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "quanto_core": __version__,
            "modules": self.modules,
            "shards": [{"file": name, "bytes": size} for name, size in self.shards],
            "tensors": self.tensors,
            "aliases": self.aliases,
            "views": self.views,
        }
        return "{\n" + ",\n".join(f" {json.dumps(key)}: {_lines(data[key])}" for key in sorted(data)) + "\n}\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads and checks a folder's JSON.

        Raises:
            FormatError: if it is missing, damaged, hostile, or of a newer version.
        """
        path = folder / FILE
        if not path.exists():
            raise FormatError(f"{folder} holds no {FILE}: it is not a saved quanto model, or saving did not finish")
        try:
            with locate(folder, FILE).open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None
        if len(text) > _MAX_BYTES:
            raise FormatError(f"{path} is larger than {_MAX_BYTES} bytes")
        return cls._check(parse_object(text, path, ""), path)

    @classmethod
    def _check(cls, data: dict[str, Any], path: Path) -> Manifest:
        def need(condition: bool, what: str) -> None:
            if not condition:
                raise FormatError(f"{path}: {what}")

        need(data.get("format") == FORMAT, f"format must be {FORMAT!r}, got {data.get('format')!r:.100}")
        version = data.get("version")
        if type(version) is not int or version < 1:
            raise FormatError(f"{path}: version must be a positive integer, got {version!r:.100}")
        need(version <= VERSION, f"version {version} is newer than this quanto-core reads ({VERSION}): upgrade it")
        need(not set(data) - _KEYS, f"unknown keys {sorted(set(data) - _KEYS)!r:.200}")
        need(isinstance(data.get("quanto_core"), str), "quanto_core must be a text")
        for key, kind in (("modules", dict), ("shards", list), ("tensors", dict), ("aliases", dict), ("views", dict)):
            need(isinstance(data.get(key), kind), f"{key} must be a JSON {'object' if kind is dict else 'array'}")
        shards = _shards(data["shards"], need)
        for name, index in data["tensors"].items():
            sound = type(index) is int and 0 <= index < len(shards)
            need(sound, f"tensor {name!r:.200} is in no listed shard: {index!r:.50}")
        for name, target in data["aliases"].items():
            need(name not in data["tensors"], f"{name!r:.200} is both a tensor and an alias")
            sound = isinstance(target, str) and target in data["tensors"]
            need(sound, f"alias {name!r:.200} points to nothing: {target!r:.200}")
        for name, dtype in data["views"].items():
            need(name in data["tensors"], f"view {name!r:.200} is of no tensor")
            need(isinstance(dtype, str) and dtype in VIEWS, f"view {name!r:.200} is of an unknown dtype: {dtype!r:.50}")
        for name, entry in data["modules"].items():
            try:
                need(Entry.parse(entry).parameters is not None, f"module {name!r:.200}: parameters are missing")
            except ValueError as error:
                if isinstance(error, FormatError):
                    raise
                raise FormatError(f"{path}: module {name!r:.200}: {error}") from None
        return cls(data["modules"], tuple(shards.items()), data["tensors"], data["aliases"], data["views"])


def _shards(entries: list[Any], need: Any) -> dict[str, int]:
    shards: dict[str, int] = {}
    for entry in entries:
        need(isinstance(entry, dict) and set(entry) == {"file", "bytes"}, "each of shards must be {file, bytes}")
        name, size = entry["file"], entry["bytes"]
        need(is_plain(name), f"shard name {name!r:.200} is not a plain file name ending in .safetensors")
        need(type(size) is int and 8 < size < 2**63, f"shard {name!r}: bytes must be a size, got {size!r:.50}")
        need(name not in shards, f"shard {name!r} is listed twice")
        shards[name] = size
    return shards


def _lines(value: Any) -> str:
    """A value of the outermost object: its entries each on a line."""
    if not isinstance(value, (Mapping, list)) or not value:
        return json.dumps(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"  {json.dumps(v, sort_keys=True)}" for v in value) + "\n ]"
    lines = (f"  {json.dumps(k)}: {json.dumps(value[k], sort_keys=True)}" for k in sorted(value))
    return "{\n" + ",\n".join(lines) + "\n }"
