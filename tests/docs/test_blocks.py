# SPDX-License-Identifier: Apache-2.0
"""Every code block of the documentation does what it says: Python runs, JSON and TOML parse, commands exist."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blocks import Block, blocks, program
from tree import ROOT, documents, shown

# Shown, not run: a terminal, a picture in letters, source of another language.
SHOWN = {"", "bash", "console", "cpp", "diff", "metal", "sh", "text"}
PARSED = {"json", "toml", "yaml"}
DOCUMENTS = pytest.mark.parametrize("document", documents(), ids=shown)


def _run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    file = folder / "blocks.py"
    file.write_text(script, encoding="utf-8")
    command = [sys.executable, str(file)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)


@DOCUMENTS
def test_python_blocks_run(document: Path, tmp_path: Path) -> None:
    """All blocks of one document in order and in one namespace, in an empty folder."""
    text = document.read_text(encoding="utf-8")
    if not any(block.language == "python" and block.skip is None for block in blocks(text)):
        pytest.skip("no Python block")
    done = _run(program(text, shown(document)), tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _complaint(block: Block) -> str | None:
    """What is wrong with a block that is not run as Python, or None."""
    if block.skip is not None:
        return None if len(block.skip.split()) >= 2 else "is marked no-run without a reason"
    if block.language not in {"python", *SHOWN, *PARSED}:
        return f"has the unknown language {block.language!r}"
    try:
        if block.language == "json":
            json.loads(block.code)
        elif block.language == "toml" and sys.version_info >= (3, 11):
            import tomllib

            tomllib.loads(block.code)
        elif block.language == "python":
            ast.parse(block.code)
    except ValueError as error:
        return f"does not parse: {error}"
    except SyntaxError as error:
        return f"does not parse: {error}"
    return None


@DOCUMENTS
def test_other_blocks_are_sound(document: Path) -> None:
    found = [(block.line, _complaint(block)) for block in blocks(document.read_text(encoding="utf-8"))]
    assert not [f"line {line} {text}" for line, text in found if text]


@pytest.fixture(scope="module")
def sessions() -> dict[str, str]:
    """Name and description of every nox session on this machine."""
    # Not --json: that lists only what `nox` runs by default.
    command = [sys.executable, "-m", "nox", "--list", "--nocolor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return dict(re.findall(r"^[*-] ([\w-]+)(?:\([^)]*\))?(?: -> (.*))?$", done.stdout, re.MULTILINE))


# Sessions that only some machines have.
ELSEWHERE = {"gpu", "mac"}


@DOCUMENTS
def test_named_sessions_exist(document: Path, sessions: dict[str, str]) -> None:
    named = re.findall(r"\bnox -s [\"']?([a-z][\w-]*)", document.read_text(encoding="utf-8"))
    assert not {name.rstrip("-") for name in named} - sessions.keys() - ELSEWHERE - {"backend", "integration"}


def test_sessions_describe_themselves(sessions: dict[str, str]) -> None:
    """`nox -l` is the developer manual: one sentence each."""
    promised = {"bench", "core", "coverage", "demo", "docs", "lint", "tests", "types", "wheels"}
    assert promised <= sessions.keys()
    assert not [name for name, text in sessions.items() if not text.endswith(".")]


MARKED = "<!-- no-run: needs a GPU -->\n```python\nraise SystemExit(3)\n```\n"


def test_blocks_share_one_namespace_and_report_their_line(tmp_path: Path) -> None:
    text = "# A\n\n```python\nx = 1\n```\n\n" + MARKED + "\n- item\n\n  ```python\n  assert x == 2, x\n  ```\n"
    done = _run(program(text, "docs/a.md"), tmp_path)
    assert done.returncode == 1
    assert 'File "docs/a.md", line 15' in done.stderr
    assert "assert x == 2" in done.stderr
    assert _run(program(text.replace("== 2", "== 1"), "docs/a.md"), tmp_path).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "<!-- no-run: -->\n```python\nx\n```",
        "```pyhton\nx\n```",
        "```json\n{,}\n```",
        "```python\nx = = 1\n```",
    ],
)
def test_unsound_blocks_are_found(text: str) -> None:
    (block,) = blocks(text)
    assert _complaint(block)
