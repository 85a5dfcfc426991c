# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file, checked before anything of the file is used.

8 bytes    length n of the header, little-endian
n bytes    JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__"
the rest   tensor data, back to back
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .manifest import FormatError, _no_constants, _no_doubles

__all__ = ["TensorInfo", "read_header"]

MAX_HEADER = 100_000_000  # the limit of the safetensors library
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class TensorInfo:
    """dtype and shape of a stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(path: Path, size: int) -> dict[str, TensorInfo]:
    """Reads the header of a shard.

    Args:
        path: the file.
        size: how many bytes it must have.

    Raises:
        FormatError: if the file is missing, truncated, or its header lies.
    """
    if path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise FormatError(f"{path} is a link that leaves its folder")
    try:
        with path.open("rb") as file:
            found = path.stat().st_size
            if found != size:
                raise FormatError(f"{path} has {found} bytes, {size} were saved: it is truncated or not the same file")
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, found - 8):
                raise FormatError(f"{path}: its header claims {length} bytes")
            text = file.read(length)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        data = json.loads(text, object_pairs_hook=_no_doubles, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its header is not sound JSON: {error}") from None
    if not isinstance(data, dict):
        raise FormatError(f"{path}: its header must be a JSON object")
    data.pop("__metadata__", None)
    return _tensors(data, path, size - 8 - length)


def _tensors(data: dict[str, Any], path: Path, payload: int) -> dict[str, TensorInfo]:
    infos, spans = {}, []
    for name, entry in data.items():
        try:
            dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            whole = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            raise FormatError(f"{path}: the header of tensor {name!r} is not understood: {entry!r:.200}") from None
        if not whole or end - begin != math.prod(shape) * dtype.itemsize or end > payload:
            raise FormatError(f"{path}: tensor {name!r} does not fit its place: shape {shape}, bytes {begin} to {end}")
        infos[name] = TensorInfo(dtype, tuple(shape))
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise FormatError(f"{path}: tensor {name!r} overlaps another or leaves a gap at byte {position}")
        position = end
    if position != payload:
        raise FormatError(f"{path}: {payload - position} bytes belong to no tensor")
    return infos
