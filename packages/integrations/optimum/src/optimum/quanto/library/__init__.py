# SPDX-License-Identifier: Apache-2.0
"""Operators of torch by the names of optimum-quanto, and what stands for its compiled extensions."""

from .extensions import get_extension, is_extension_available
from .operators import define_operators

__all__ = ["define_operators", "get_extension", "is_extension_available"]
