# SPDX-License-Identifier: Apache-2.0
"""Text files that people write."""

from __future__ import annotations

from pathlib import Path

__all__ = ["read_text"]


def read_text(path: Path) -> str:
    """What a file holds, without the mark that some editors put in front.

    Raises:
        ValueError: naming the file and the line that is not UTF-8.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8, byte 0x{content[error.start]:02x}") from None
