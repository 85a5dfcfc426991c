# SPDX-License-Identifier: Apache-2.0
"""Registers something, then raises in another hook."""

from quanto.plugins import hookimpl
from quanto_broken import broken

QUANTO_API = 1


@hookimpl
def register_qtypes(register):
    register(broken)


@hookimpl
def register_modules(registry):
    raise KeyError("a bug")
