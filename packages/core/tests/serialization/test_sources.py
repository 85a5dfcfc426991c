# SPDX-License-Identifier: Apache-2.0
"""Float checkpoints: one file, several, and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quanto.serialization import FormatError
from quanto.serialization.sources import Source

Write = Callable[[dict[str, torch.Tensor], Path], None]


def test_a_file_and_a_folder_of_shards(tmp_path: Path, write_floats: Write) -> None:
    a, b = torch.randn(3, 4), torch.randn(2).bfloat16()
    write_floats({"a": a}, tmp_path / "one.safetensors")
    write_floats({"b": b}, tmp_path / "two.safetensors")
    source = Source.open(tmp_path)
    assert torch.equal(source.read("a"), a)
    assert torch.equal(source.read("b"), b)
    assert source.infos["b"].dtype == torch.bfloat16
    assert list(Source.open(tmp_path / "one.safetensors").infos) == ["a"]


def test_the_index_decides_which_files_count(tmp_path: Path, write_floats: Write) -> None:
    write_floats({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    write_floats({"a": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    with pytest.raises(FormatError, match=r"'a' is in consolidated\.safetensors too"):
        Source.open(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert Source.open(tmp_path).read("a") == 1
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(FormatError, match=r"model-2\.safetensors is missing"):
        Source.open(tmp_path)
    index.write_text("[]")
    with pytest.raises(FormatError, match="is no index"):
        Source.open(tmp_path)


def test_nothing_there_and_damage(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        Source.open(tmp_path / "none")
    with pytest.raises(FormatError, match="holds no safetensors"):
        Source.open(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(FormatError, match=r"a\.safetensors"):
        Source.open(tmp_path)
