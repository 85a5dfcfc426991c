# SPDX-License-Identifier: Apache-2.0
"""Metal without a Mac: shaders compiled as C++, and launched as torch would launch them."""

from .standin import Checks, Shim

__all__ = ["Checks", "Shim"]
