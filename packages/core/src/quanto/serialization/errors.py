# SPDX-License-Identifier: Apache-2.0
"""`FormatError`."""

from __future__ import annotations

__all__ = ["FormatError"]


class FormatError(ValueError):
    """A saved folder is damaged, hostile, too new, or not of this model; the message names file and fault."""
