# SPDX-License-Identifier: Apache-2.0
"""Two distributions that own the same files cannot both be right."""

from __future__ import annotations

from importlib import metadata

__all__ = ["refuse_both"]


def refuse_both() -> None:
    """Refuses to be imported beside the distribution whose files these replace.

    Raises:
        ImportError: if optimum-quanto is installed too.
    """
    try:
        found = metadata.version("optimum-quanto")
    except metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"optimum-quanto {found} and quanto-optimum both install optimum/quanto, and their files are mixed now: "
        "pip uninstall optimum-quanto quanto-optimum, then pip install quanto-optimum"
    )
