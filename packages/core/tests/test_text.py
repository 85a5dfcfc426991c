# SPDX-License-Identifier: Apache-2.0
"""Text files are UTF-8, and errors say where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from quanto._text import read_text


def test_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + "größe = 1\n".encode())
        assert read_text(path) == "größe = 1\n"


def test_the_line_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes("a = 1\nb = 'größe'\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"rules\.toml, line 2: not UTF-8, byte 0xf6"):
        read_text(path)
