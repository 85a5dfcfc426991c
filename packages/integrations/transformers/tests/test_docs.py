# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of docs/transformers.md and of the README, in order, on a tiny model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
DOCUMENTS = [PACKAGE.parents[2] / "docs" / "transformers.md", PACKAGE / "README.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_run(
    document: Path, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    found = re.findall(r"^```python\n(.*?)^```$", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    monkeypatch.chdir(tmp_path)
    names = {"name": str(saved("llama")), "folder": str(tmp_path / "folder")}
    for block in found:
        exec(compile(block, str(document), "exec"), names)
