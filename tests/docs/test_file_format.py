# SPDX-License-Identifier: Apache-2.0
"""docs/file-format.md names what the code writes and reads: keys, fields, arrangements, views, parts, qtypes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

import quanto
from blocks import blocks
from quanto.mapping import Entry
from quanto.nn.slot import ARRANGEMENTS, PARTS
from quanto.serialization.manifest import FILE, VERSION
from quanto.serialization.views import VIEWS
from tree import ROOT

TEXT = (ROOT / "docs" / "file-format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The JSON of a small model, saved twice so that its shard has a generation."""
    folder = tmp_path_factory.mktemp("saved")
    for _ in range(2):
        quanto.save(quanto.freeze(quanto.quantize(torch.nn.Linear(8, 8), "int4")), folder)
    return json.loads((folder / FILE).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_every_key_is_documented(written: dict[str, object]) -> None:
    keys = re.findall(r"^\| `(\w+)` \| ", TEXT.split("An entry of")[0], re.MULTILINE)
    assert sorted(keys) == sorted(written)


def test_names_of_files_are_documented(written: dict[str, object]) -> None:
    (shard,) = written["shards"]  # type: ignore[misc]
    assert shard["file"] == "quanto-g2-00001-of-00001.safetensors"
    assert f"`{shard['file']}`" in TEXT


def test_the_version_is_documented() -> None:
    assert f"# The saved folder, version {VERSION}\n" in TEXT


def test_the_entry_shown_is_one() -> None:
    (block,) = [block for block in blocks(TEXT) if block.language == "json"]
    entry = Entry.parse(json.loads(block.code))
    assert entry.parameters is not None
    fields = {"arrangement", "block_size", "dtype", "shape"}
    assert set(entry.parameters["weight"]) == fields
    assert all(f"`{field}`" in TEXT for field in fields)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(quanto.Scheme)])
def test_every_field_of_a_scheme_is_documented(name: str) -> None:
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("name", [*ARRANGEMENTS, *VIEWS, *quanto.qtypes, *(f"W_{part}" for part in PARTS)])
def test_every_name_is_documented(name: str) -> None:
    assert f"`{name}`" in TEXT


def test_sources_refer_to_the_document() -> None:
    package = Path(quanto.__file__).parent / "serialization"
    assert "docs/file-format.md" in (package / "__init__.py").read_text(encoding="utf-8")
