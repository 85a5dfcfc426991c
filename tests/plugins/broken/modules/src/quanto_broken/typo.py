# SPDX-License-Identifier: Apache-2.0
"""Implements a hook that does not exist, besides one that does."""

from quanto.plugins import hookimpl
from quanto_broken import broken

QUANTO_API = 1


@hookimpl
def register_qtypes(register):
    register(broken)


@hookimpl
def register_kernel(registry):
    """Would be `register_kernels`."""
