# SPDX-License-Identifier: Apache-2.0
"""Was written for an API that is gone."""

from quanto.plugins import hookimpl
from quanto_broken import broken

QUANTO_API = 0


@hookimpl
def register_qtypes(register):
    register(broken)
