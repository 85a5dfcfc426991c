# SPDX-License-Identifier: Apache-2.0
"""Kernels: declared as data, chosen once, explained on request."""

from .layout import Layout
from .registry import Candidate, Choice, KernelConflict, KernelFallbackWarning, KernelRegistry, kernels
from .spec import KernelSpec, Request

__all__ = [
    "Candidate",
    "Choice",
    "KernelConflict",
    "KernelFallbackWarning",
    "KernelRegistry",
    "KernelSpec",
    "Layout",
    "Request",
    "kernels",
]
