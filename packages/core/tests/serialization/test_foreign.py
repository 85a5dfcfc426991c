# SPDX-License-Identifier: Apache-2.0
"""Formats of plugins that can do more than read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from quanto.plugins import plugins
from quanto.serialization.foreign import complete, fetch, known_layers, open_model
from quanto.serialization.formats import formats


def test_the_first_format_that_accepts_and_can_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.load()
    calls: list[object] = []
    deaf = SimpleNamespace(accepts=lambda folder: False, open=None, layers=lambda folder: {"no": "rows"})
    able = SimpleNamespace(
        accepts=lambda folder: True,
        layers=lambda folder: {"a": "rows"},
        open=lambda folder: ("model", "encode"),
        complete=lambda *arguments: calls.append(arguments),
    )
    monkeypatch.setitem(formats, "deaf", deaf)
    monkeypatch.setitem(formats, "able", able)
    assert known_layers(tmp_path) == {"a": "rows"}
    assert open_model(tmp_path) == ("model", "encode")
    assert complete(tmp_path, tmp_path / "out", "manifest") == ["able"]
    assert calls == [(tmp_path, tmp_path / "out", "manifest")]


def test_where_none_can_the_message_names_the_folder(tmp_path: Path) -> None:
    assert known_layers(tmp_path) is None
    assert complete(tmp_path, tmp_path, None) == []
    with pytest.raises(ValueError, match="no installed package knows how to run this model"):
        open_model(tmp_path)


def test_a_name_on_a_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr("quanto.serialization.foreign.formats", {"idle": SimpleNamespace()})
    assert fetch(Path("owner/name.v1")) == Path("owner/name.v1")  # no format knows a hub
    hub = SimpleNamespace(detect=lambda path: False, fetch=lambda name: asked.append(name) or tmp_path / "cache")
    monkeypatch.setattr("quanto.serialization.foreign.formats", {"idle": SimpleNamespace(), "hub": hub})
    assert fetch(Path("owner/name.v1")) == tmp_path / "cache"
    Path("here").mkdir()
    Path("here/model").mkdir()
    for path in ("here/model", "model", "/owner/name", "../name", "a/b/c"):
        assert fetch(Path(path)) == Path(path)
    assert asked == ["owner/name.v1"]
