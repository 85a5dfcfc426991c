# SPDX-License-Identifier: Apache-2.0
"""Form of the files: the licence line, their length, and nothing that belongs to one person's machine."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from tree import ROOT, files, shown

SPDX = "# SPDX-License-Identifier: Apache-2.0"
LOOK_AT, REFUSE = 300, 400

# What gets into files by accident: folders and addresses of one machine, and notes to oneself.
ACCIDENTS = {
    "a folder of one machine": re.compile(r"(?<![\w.])/(?:work|root|opt/[\w-]+|home/\w+|Users/\w+)/"),
    "a local address": re.compile(r"\bfile:///"),
    "a note to oneself": re.compile(r"\b(?:TODO|FIXME|XXX)\b|(?i:\blorem ipsum\b)"),
    "how the text was written": re.compile(r"(?i)\b(?:co-authored-by|as an AI|AI[- ](?:generated|assisted))\b"),
}
TEXT = (".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".cpp", ".h", ".metal", ".cfg")


def _texts() -> list[Path]:
    found = [path for suffix in TEXT for path in files(suffix)]
    return sorted({*found, ROOT / ".ci" / "run"} - {Path(__file__).resolve()})


@pytest.mark.parametrize("path", list(files(".py")), ids=shown)
def test_first_line_names_the_licence(path: Path) -> None:
    assert path.read_text(encoding="utf-8").split("\n", 1)[0] == SPDX


def test_files_stay_short() -> None:
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files(".py")}
    if long := {name: length for name, length in lengths.items() if length > LOOK_AT}:
        warnings.warn(f"more than {LOOK_AT} lines, look hard: {long}", stacklevel=1)
    assert not {name: length for name, length in lengths.items() if length > REFUSE}


def _accident(line: str) -> str | None:
    """What the line holds that should not be there, as a sentence's end, or None."""
    for what, pattern in ACCIDENTS.items():
        if found := pattern.search(line):
            return f"{what}: {found.group()!r}"
    return None


@pytest.mark.parametrize("path", _texts(), ids=shown)
def test_nothing_personal(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [f"line {number} holds {what}" for number, line in enumerate(lines, 1) if (what := _accident(line))]
    assert not found, f"{shown(path)}: {'; '.join(found)}"


@pytest.mark.parametrize("line", ["see /home/me/x", "in /Users/a/b", "file:///x", "# TODO: later", "x at /root/a"])
def test_accidents_are_found(line: str) -> None:
    assert _accident(line)


@pytest.mark.parametrize("line", ["docs/work/x.md", "the work/rest ratio", "a homework", "~/.cache/quanto", "file://"])
def test_ordinary_text_is_not(line: str) -> None:
    assert _accident(line) is None
