# SPDX-License-Identifier: Apache-2.0
"""Quantized raw parameters of any module, such as the 3-D weights of fused mixture-of-experts layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from .base import QModule

__all__ = ["QParameters"]


class QParameters(QModule, nn.Module):
    """A module whose own forward reads its parameters by name.

    Frozen, `self.<name>` is a `QTensor`; `self.<name>[expert]` is a slice of it, and `F.linear` and `@` with it run on
    the kernels, so the module's forward needs no change. While trainable, the parameter is read as plain floats.

    A subclass that computes with `quanto.ops.grouped_linear` can be calibrated: it sets `operator` to
    `"grouped_linear"`, overrides `float_forward`, and calls `watch`, where it is set, in there.
    """

    quantized_parameters: ClassVar[dict[str, str]] = {}
    #: called with the name of a floating parameter, the rows `[tokens, in]` that it is about to meet, sorted by expert,
    #: and where those of each expert end, `[experts]`
    watch: Callable[[str, Tensor, Tensor], None] | None = None

    def float_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass with what is not frozen as plain floats: here that of the float class."""
        return self._float_class.forward(self, *args, **kwargs)
