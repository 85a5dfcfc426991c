# SPDX-License-Identifier: Apache-2.0
"""Saving and loading models: a folder of safetensors shards and one JSON file (docs/file-format.md)."""

from .errors import FormatError
from .load import load
from .save import save

__all__ = ["FormatError", "load", "save"]
