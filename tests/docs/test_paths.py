# SPDX-License-Identifier: Apache-2.0
"""Every path that the documentation names exists: inline code that looks like a path, and the targets of links.

Code spans are taken for paths if they hold a slash and begin with a name that lies at the root or beside the document,
or end like a source file. `{a,b}`, `*` and a line or test after the name are understood, `<name>` and `…` stand for
something the reader fills in. A document that describes a tree elsewhere, such as a plugin's own, says so with
`<!-- elsewhere: PREFIX -->`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tree import ROOT, documents, shown

SOURCE = (".cfg", ".cpp", ".h", ".md", ".metal", ".py", ".toml", ".yaml", ".yml")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"<!-- elsewhere: (\S+) -->")
PATH = re.compile(r"\.?[\w*{][\w.,*{}/-]*")


def _expanded(text: str) -> list[str]:
    """`a/{b,c}/d` as `a/b/d` and `a/c/d`."""
    if found := re.search(r"\{([^{}]*)\}", text):
        parts = found.group(1).split(",")
        return [whole for part in parts for whole in _expanded(text[: found.start()] + part + text[found.end() :])]
    return [text]


def named_paths(text: str, folder: Path) -> list[str]:
    """The spans of a document that name a path, without what follows the name (`:12`, `::test`)."""
    prose = FENCE.sub("", text)
    elsewhere = tuple(ELSEWHERE.findall(text))
    found = []
    for span in SPAN.findall(prose):
        name = re.sub(r"(::.*|:\d+)$", "", span.strip())
        if not PATH.fullmatch(name) or "/" not in name or name.startswith(elsewhere or "\0"):
            continue
        first = name.split("/")[0]
        if name.endswith(SOURCE) or (ROOT / first).exists() or (folder / first).exists():
            found += _expanded(name)
    return found


def missing(text: str, folder: Path) -> list[str]:
    """The paths and link targets of a document that do not exist."""
    paths = named_paths(text, folder)
    links = [link.split("#")[0] for link in LINK.findall(FENCE.sub("", text)) if not re.match(r"[a-z]+:|#", link)]
    bases = (folder, ROOT)
    gone = [path for path in paths if not any(list(base.glob(path.rstrip("/"))) for base in bases)]
    return gone + [link for link in links if not (folder / link).exists()]


@pytest.mark.parametrize("document", documents(), ids=shown)
def test_named_paths_exist(document: Path) -> None:
    assert not missing(document.read_text(encoding="utf-8"), document.parent)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`packages/core/pyproject.toml` and `tests/*/test_*.py`", []),
        ("`packages/cor/pyproject.toml`", ["packages/cor/pyproject.toml"]),
        ("`package/core/x.py`", ["package/core/x.py"]),
        ("`tests/{docs,doc}/test_paths.py`", ["tests/doc/test_paths.py"]),
        ("`tests/docs/test_paths.py::test_named_paths_exist` `noxfile.py:12`", []),
        ("`in/group` `tokens/s` `packages/backends/<name>/` `uint8[out, in/2]`", []),
        ("[guide](tests/nothing.md) [web](https://example.org/a) [here](#a)", ["tests/nothing.md"]),
        ("```\n`tests/none.py`\n```", []),
        ("<!-- elsewhere: mine/ -->`mine/plugin.py` `other/plugin.py`", ["other/plugin.py"]),
    ],
)
def test_missing_paths_are_found(text: str, expected: list[str]) -> None:
    assert missing(text, ROOT) == expected
