# SPDX-License-Identifier: Apache-2.0
"""`QTensor` and how to make one."""

from .qtensor import QTensor
from .quantize import quantize_activation, quantize_tensor

__all__ = ["QTensor", "quantize_activation", "quantize_tensor"]
