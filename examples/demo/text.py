# SPDX-License-Identifier: Apache-2.0
"""Prose that every Python carries: the language reference behind `help()`."""

from __future__ import annotations

import platform
import re
from pydoc_data.topics import topics

__all__ = ["SOURCE", "prose"]

# The reference is rewritten a little with every Python: figures on it compare within one version only.
SOURCE = f"pydoc_data.topics of Python {platform.python_version()}"


def prose() -> str:
    """Joins the running text of all topics, in the order of their names.

    Headings, grammar, code and indented lists are left out, wrapped lines are joined, and a paragraph that several
    topics share counts once.

    Returns:
        Paragraphs separated by blank lines, about 150,000 characters.
    """
    paragraphs: dict[str, None] = {}
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            lines = [line for line in block.split("\n") if line.strip()]
            if any(line.startswith(" ") for line in lines):
                continue
            paragraph = " ".join(" ".join(lines).split())
            if len(paragraph) >= 80 and paragraph.endswith((".", ":")) and "::=" not in paragraph:
                paragraphs[paragraph] = None
    return "\n\n".join(paragraphs)
