# SPDX-License-Identifier: Apache-2.0
"""Extensions: optimum-quanto compiles them at first use; here kernels come ready from quanto's backend packages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Extension", "get_extension", "is_extension_available"]


@dataclass(frozen=True)
class Extension:
    """An extension; nothing is compiled.

    Attributes:
        name: as optimum-quanto has it.
    """

    name: str

    @property
    def lib(self) -> Any:
        """What has the functions of the extension: `unpack(packed, bits)`."""
        return torch.ops.quanto


_EXTENSIONS = {"quanto_cpp": Extension("quanto_cpp")}


def is_extension_available(name: str) -> bool:
    """Whether functions of that extension can be called.

    Those of `quanto_cuda`, `quanto_hip`, `quanto_mps` and `quanto_xpu` take layouts that do not exist here.
    """
    return name in _EXTENSIONS


def get_extension(name: str) -> Extension:
    """The extension of that name.

    Raises:
        KeyError: if it is not available.
    """
    if name not in _EXTENSIONS:
        raise KeyError(
            f"no extension {name!r}: kernels come with quanto-backend-cpu, -cuda and -mps; see `quanto info`"
        )
    return _EXTENSIONS[name]
