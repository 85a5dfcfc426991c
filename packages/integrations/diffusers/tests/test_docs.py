# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of docs/diffusers.md and of the README, in order, on a tiny model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
DOCUMENTS = [PACKAGE.parents[2] / "docs" / "diffusers.md", PACKAGE / "README.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_run(
    document: Path, saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    text = document.read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    monkeypatch.chdir(tmp_path)
    names = {"name": str(saved("flux")), "folder": str(tmp_path / "folder")}
    for block in found:
        if "DiffusionPipeline" not in block:  # test_pipeline has that
            exec(compile(block, str(document), "exec"), names)
