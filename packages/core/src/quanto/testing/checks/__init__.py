# SPDX-License-Identifier: Apache-2.0
"""What every kernel must pass, by name."""

from . import layouts, numbers, tensors, tracing
from .base import CHECKS, Check, Disagreement

__all__ = ["CHECKS", "Check", "Disagreement", "layouts", "numbers", "tensors", "tracing"]
