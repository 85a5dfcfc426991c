# SPDX-License-Identifier: Apache-2.0
"""Quantized raw parameters of any module, such as the 3-D weights of fused mixture-of-experts layers."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from .base import QModule

__all__ = ["QParameters"]


class QParameters(QModule, nn.Module):
    """A module whose own forward reads its parameters by name.

    Frozen, `self.<name>` is a `QTensor`; `self.<name>[expert]` is a slice of it, and `F.linear` and `@` with it run on
    the kernels, so the module's forward needs no change. While trainable, the parameter is read as plain floats.
    """

    quantized_parameters: ClassVar[dict[str, str]] = {}
