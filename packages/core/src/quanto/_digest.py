# SPDX-License-Identifier: Apache-2.0
"""What tells models and data apart: a digest of all their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ._bytes import bytes_of

__all__ = ["digest_of"]


def digest_of(*values: Any) -> str:
    """SHA-256 of tensors, to the bit, and of mappings, lists and tuples of them; of anything else by its `repr`.

    The device of a tensor does not count.
    """
    digest = hashlib.sha256()
    for value in values:
        _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype} ".encode())
        value = value.detach().cpu().contiguous() if not value.is_meta else value
        if not value.is_meta and value.numel():
            digest.update(bytes_of(value))
    elif isinstance(value, Mapping):
        digest.update(f"{len(value)} names ".encode())
        for name in value:
            digest.update(f"{name!r} ".encode())
            _add(digest, value[name])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} values ".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{value!r} ".encode())
