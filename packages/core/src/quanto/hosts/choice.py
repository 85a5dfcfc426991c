# SPDX-License-Identifier: Apache-2.0
"""`Choice`: what an integration has decided for one module of a float model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..scheme import Scheme

__all__ = ["Choice"]


@dataclass(frozen=True)
class Choice:
    """A module that will be quantized.

    Attributes:
        name: in the model.
        module: itself.
        scheme: what it gets.
        parameters: arrangement by name of raw parameters; None for modules with a twin.
    """

    name: str
    module: nn.Module
    scheme: Scheme
    parameters: Mapping[str, str] | None = None
