# SPDX-License-Identifier: Apache-2.0
"""What a document quotes from a file is in the file: `<!-- from: PATH -->` before a block names it.

The examples are installed and tested in tests/plugins, so what a reader copies from the pages has been run.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tree import ROOT, documents, files, shown

QUOTE = re.compile(
    r"<!-- from: (?P<path>\S+) -->\s*(?:<!-- no-run:[^\n]*-->\s*)?^(?P<fence>`{3,})\w*\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
EXAMPLES = [
    path for folder in ("example", "integration") for path in files(".py", ROOT / "tests" / "plugins" / folder / "src")
]


def quotes(text: str) -> list[tuple[str, str]]:
    """Path and code of every quote of a document."""
    return [(match["path"], match["code"]) for match in QUOTE.finditer(text)]


def unlike(text: str) -> list[str]:
    """The paths of quotes that are not in their file."""
    return [path for path, code in quotes(text) if code not in (ROOT / path).read_text(encoding="utf-8")]


@pytest.mark.parametrize("document", documents(), ids=shown)
def test_quotes_are_in_their_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert text.count("<!-- from: ") == len(quotes(text)), "a mark that no block follows"
    assert not unlike(text)


@pytest.mark.parametrize("path", EXAMPLES, ids=shown)
def test_every_line_of_the_examples_is_shown(path: Path) -> None:
    shown_lines = {
        line
        for document in documents()
        for name, code in quotes(document.read_text(encoding="utf-8"))
        if name == shown(path)
        for line in code.splitlines()
    }
    licence, *lines = path.read_text(encoding="utf-8").splitlines()
    if path.name == "__init__.py":
        lines = [line for line in lines if not line.startswith('"""')]
    assert licence.startswith("# SPDX")
    assert not [line for line in lines if line and line not in shown_lines]


def test_a_changed_quote_is_found() -> None:
    mark = "<!-- from: tests/docs/test_quotes.py -->\n"
    assert unlike(mark + "```python\nimport re\n```\n") == []
    assert unlike(mark + "<!-- no-run: a test -->\n```python\nimport re \n```\n") == ["tests/docs/test_quotes.py"]
    assert quotes("```python\nimport re\n```\n") == []
