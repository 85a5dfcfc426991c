# SPDX-License-Identifier: Apache-2.0
"""Whether optional libraries are installed."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["is_diffusers_available", "is_transformers_available"]


def is_transformers_available() -> bool:
    """Whether transformers is installed."""
    return find_spec("transformers") is not None


def is_diffusers_available() -> bool:
    """Whether diffusers is installed."""
    return find_spec("diffusers") is not None
