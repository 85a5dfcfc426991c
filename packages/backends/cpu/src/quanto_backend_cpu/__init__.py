# SPDX-License-Identifier: Apache-2.0
"""Native CPU kernels for quanto. Installing the package is all: quanto finds it by its entry point."""

from ._version import __version__
from .library import instruction_set, instruction_sets, use

__all__ = ["__version__", "instruction_set", "instruction_sets", "use"]
