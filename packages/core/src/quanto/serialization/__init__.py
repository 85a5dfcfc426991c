# SPDX-License-Identifier: Apache-2.0
"""Saving models to folders of safetensors and a small JSON, and loading them. `docs/file-format.md` specifies both."""

from .load import load
from .manifest import FormatError
from .save import save

__all__ = ["FormatError", "load", "save"]
