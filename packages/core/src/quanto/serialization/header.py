# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file: written for a shard, and checked before anything of a file is used.

    8 bytes    length n of the header, little-endian
    n bytes    JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__"; spaces may follow
    the rest   tensor data, back to back

Source: https://github.com/huggingface/safetensors, section Format of its README.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import FormatError
from .strict_json import parse_object

__all__ = ["DTYPES", "TensorInfo", "build_header", "read_header"]

#: dtypes by their names in files; those that safetensors 0.6.1 and torch 2.11 both know.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_MAX_DIMS = 64  # of torch
_LIMIT = 2**63
_ALIGNMENT = 64  # bytes; a cache line, and the widest vector register


@dataclass(frozen=True)
class TensorInfo:
    """dtype and shape of a stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def build_header(infos: Mapping[str, TensorInfo]) -> bytes:
    """The bytes before the data of tensors that follow one another in this order.

    Padded with spaces, so that the data begins at a multiple of 64 bytes: memory-mapped tensors are aligned.
    """
    position, entries = 0, {"__metadata__": {"format": "pt"}}
    for name, info in infos.items():
        end = position + info.nbytes
        entries[name] = {"dtype": _NAMES[info.dtype], "shape": info.shape, "data_offsets": (position, end)}  # type: ignore[dict-item]
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path, size: int) -> dict[str, TensorInfo]:
    """Reads the header of a shard.

    Args:
        path: a file.
        size: how many bytes it must have.

    Raises:
        FormatError: if the file cannot be read, has another size, or its header lies.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise FormatError(f"{path} has {found} bytes, {size} were saved: it is truncated or not the same file")
            length = int.from_bytes(file.read(8), "little")
            if length > min(_MAX_HEADER, found - 8):
                raise FormatError(f"{path}: its header claims {length} bytes, the file has {found}")
            text = file.read(length)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None
    if not text.startswith(b"{") or len(text) != length:
        raise FormatError(f"{path}: its header must be a JSON object")
    data = parse_object(text, path, "its header")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: __metadata__ of its header must be an object of strings")
    return _tensors(data, path, start=8 + length, payload=size - 8 - length)


def _tensors(data: dict[str, Any], path: Path, start: int, payload: int) -> dict[str, TensorInfo]:
    infos, spans = {}, []
    for name, entry in data.items():
        try:
            dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            sound = isinstance(shape, list) and len(shape) <= _MAX_DIMS and len(entry) == 3
            sound = sound and all(type(n) is int and 0 <= n < _LIMIT for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise FormatError(f"{path}: the header of tensor {name!r:.200} is not understood: {entry!r:.200}")
        info = TensorInfo(dtype, tuple(shape))
        if end - begin != info.nbytes or end > payload:
            raise FormatError(f"{path}: tensor {name!r} does not fit its place: shape {shape}, bytes {begin} to {end}")
        if (start + begin) % dtype.itemsize:
            raise FormatError(f"{path}: tensor {name!r} is not aligned: its {dtype} begin at byte {start + begin}")
        infos[name] = info
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise FormatError(f"{path}: tensor {name!r} overlaps another or leaves a gap at byte {position}")
        position = end
    if position != payload:
        raise FormatError(f"{path}: {payload - position} bytes belong to no tensor")
    return infos
