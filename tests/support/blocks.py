# SPDX-License-Identifier: Apache-2.0
"""The fenced code blocks of a Markdown document, and a program that runs its Python blocks in order."""

from __future__ import annotations

import re
from dataclasses import dataclass

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^ *(?P=fence)`*$", re.M | re.S)
MARK = re.compile(r"<!-- no-run:(?P<reason>[^\n]*?)-->\s*\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: the first word after the fence, or an empty string.
        line: the number of its first line of code in the document.
        code: its text.
        skip: the reason it is not run, an empty string if a mark gives none, or None if there is no mark.
    """

    language: str
    line: int
    code: str
    skip: str | None


def blocks(text: str) -> list[Block]:
    """Every fenced block of a document. `<!-- no-run: reason -->` on the line before one exempts it."""
    found = []
    for match in FENCE.finditer(text):
        mark = MARK.search(text[: match.start()])
        info = match["info"].split()
        indent = len(match["indent"])
        body = re.sub(rf"^ {{0,{indent}}}", "", match["body"], flags=re.M)  # a block in a list is indented with it
        line = text.count("\n", 0, match.start("body")) + 1
        found.append(Block(info[0] if info else "", line, body, mark["reason"].strip() if mark else None))
    return found


def program(text: str, name: str) -> str:
    """A script that runs the Python blocks of a document in order, in one namespace, as a reader would.

    Tracebacks name the document and its own line numbers.
    """
    lines = ["import linecache", "space = {'__name__': '__main__'}"]
    lines.append(f"linecache.cache[{name!r}] = ({len(text)}, None, {text.splitlines(True)!r}, {name!r})")
    for block in blocks(text):
        if block.language == "python" and block.skip is None:
            padded = "\n" * (block.line - 1) + block.code
            lines.append(f"exec(compile({padded!r}, {name!r}, 'exec'), space)")
    return "\n".join(lines) + "\n"
