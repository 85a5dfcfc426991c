# SPDX-License-Identifier: Apache-2.0
"""Was written for an API of the future."""

from quanto.plugins import hookimpl
from quanto_broken import broken

QUANTO_API = 999


@hookimpl
def register_qtypes(register):
    register(broken)
