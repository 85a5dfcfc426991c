# SPDX-License-Identifier: Apache-2.0
"""Does not say which API it was written for."""

from quanto.plugins import hookimpl
from quanto_broken import broken


@hookimpl
def register_qtypes(register):
    register(broken)
