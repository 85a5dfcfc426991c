# SPDX-License-Identifier: Apache-2.0
"""Examples from JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from quanto.eval import read_examples


def test_files_are_relative_to_the_list(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "list.jsonl").write_text('{"audio": "a.wav", "text": "one"}\n\n{"text": "two", "label": 3}\n')
    assert read_examples(tmp_path / "list.jsonl") == [
        {"audio": str(tmp_path / "a.wav"), "text": "one"},
        {"text": "two", "label": 3},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n{"text"\n', r"line 2: .* one JSON object"),
        ("[1]", "line 1: must be a JSON object, got list"),
        ('{"image": "gone.png"}', "line 1: image must name a file, got 'gone.png'"),
        ('{"audio": 3}', "line 1: audio must name a file, got 3"),
        ("\n\n", "holds no example"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_examples(path)


def test_lines_end_where_json_lines_end(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text('{"text": "a\u2028b\x85c"}\r\n\n{"text": "d"}', encoding="utf-8")
    assert [example["text"] for example in read_examples(path)] == ["a\u2028b\x85c", "d"]
    path.write_bytes(b'{"text": "a"}\n{"text": "\xf6"}\n')
    with pytest.raises(ValueError, match=r"examples\.jsonl, line 2: not UTF-8, byte 0xf6"):
        read_examples(path)
