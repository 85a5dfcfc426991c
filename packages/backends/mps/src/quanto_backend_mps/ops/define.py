# SPDX-License-Identifier: Apache-2.0
"""Defines `torch.ops.quanto_mps.<name>` with the schema and the fake of an operator of `quanto.ops`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quanto.ops import FAKES, SCHEMAS

__all__ = ["NAMESPACE", "define"]

NAMESPACE = "quanto_mps"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(name: str, function: Callable[..., Any]) -> Any:
    """Defines an operator of the same name as one of `quanto.ops`; returns its overload."""
    _library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", FAKES[name], lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default
