# SPDX-License-Identifier: Apache-2.0
"""JSON that nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from .errors import FormatError

__all__ = ["parse_object"]

_DIGITS = 20  # 2**64 has as many


def parse_object(text: bytes, path: Path, what: str) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
        text: UTF-8.
        path: the file it comes from, for messages.
        what: `""` for the whole file, or a part of it such as `"its header"`, for messages.

    Raises:
        FormatError: if it is not UTF-8, no JSON, no object, nested too deeply, holds NaN or infinity, or a key twice
            in one object.
    """
    subject = f"{path}: {what}" if what else f"{path}"
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant, parse_int=_integer)
    except RecursionError:
        raise FormatError(f"{subject} is not sound JSON: it is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError too
        raise FormatError(f"{subject} is not sound JSON: {error}") from None
    if not isinstance(data, dict):
        raise FormatError(f"{subject} must be a JSON object, got {type(data).__name__}")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{double!r:.100} appears twice")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
