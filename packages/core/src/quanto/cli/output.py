# SPDX-License-Identifier: Apache-2.0
"""What commands print with `--json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import typer

__all__ = ["print_json"]


def print_json(value: Any) -> None:
    """Prints one JSON object; null stands for numbers that JSON lacks, infinities and NaN."""
    typer.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
