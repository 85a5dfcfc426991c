# SPDX-License-Identifier: Apache-2.0
"""Examples to measure on, from a file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._text import read_text

__all__ = ["Example", "read_examples"]

#: fields of one line: `text`, `label`, `image`, `audio`, `query`, `document`, whichever a kind of model needs
Example = dict[str, Any]

_FILES = ("image", "audio")


def read_examples(path: Path) -> list[Example]:
    """One object for each line that is not empty.

    Args:
        path: a file whose lines are JSON objects. Names of files in `image` and `audio` are relative to its folder.

    Raises:
        ValueError: naming the line that is not UTF-8 or no object, or whose file is not there; or if there is no line.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; a line must be one JSON object") from None
        if not isinstance(example, dict):
            raise ValueError(f"{path}, line {number}: must be a JSON object, got {type(example).__name__}")
        for field in _FILES:
            if field in example:
                example[field] = _file(path, number, field, example[field])
        found.append(example)
    if not found:
        raise ValueError(f"{path} holds no example")
    return found


def _file(path: Path, number: int, field: str, name: Any) -> str:
    file = path.parent / name if isinstance(name, str) else None
    if file is None or not file.is_file():
        raise ValueError(f"{path}, line {number}: {field} must name a file, got {name!r:.80}")
    return str(file)
