# SPDX-License-Identifier: Apache-2.0
"""The command `quanto`, which the extra `cli` makes work: one subcommand per module of this package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after `quanto`; default: those of this process.

    Returns:
        The exit status: 0, 1 where standard output was closed early, 2 for an error of the caller or a missing extra,
        130 after an interrupt; subcommands of plugins may return others.
    """
    if find_spec("typer") is None or find_spec("rich") is None:
        sys.stderr.write('quanto: the command line needs more packages: pip install "quanto-core[cli]"\n')
        return 2
    from .app import run

    return run(arguments)
