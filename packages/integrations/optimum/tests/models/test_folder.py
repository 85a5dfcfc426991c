# SPDX-License-Identifier: Apache-2.0
"""Folders: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optimum.quanto.models.folder import MAP, read_map, read_weights, write_map

ENTRY = {"weights": "qint8", "activations": "none"}


def test_maps_come_back(tmp_path: Path) -> None:
    written = {"a": ENTRY, "b": {"weights": "none", "activations": "qfloat8_e4m3fn", "outputs": "none"}}
    write_map(tmp_path, written)
    assert read_map(tmp_path) == written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "must hold an object of modules, got list"),
        ('{"a": 1}', "module 'a' must have weights and activations"),
        (json.dumps({"a": {**ENTRY, "zeros": "x"}}), "module 'a' has the field 'zeros'.*a newer version wrote it"),
        (json.dumps({"a": {**ENTRY, "weights": "qint3"}}), "module 'a' has weights 'qint3', unknown to this version"),
        (json.dumps({"a": {**ENTRY, "outputs": "qint8"}}), "has outputs 'qint8', unknown"),
    ],
)
def test_damaged_and_newer_maps(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / MAP).write_text(content)
    with pytest.raises(ValueError, match=f"{MAP}.*{message}"):
        read_map(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("quanto.json", {}, r"quanto itself wrote it, read it with quanto\.load"),
        ("config.json", {"quantization_config": {"quant_method": "quanto"}}, "saved through QuantoConfig"),
        ("config.json", {"quantization_config": {"quant_method": "torchao"}}, "quantized with 'torchao'"),
        ("config.json", {}, "holds no model that was quantized by optimum.quanto"),
    ],
)
def test_folders_of_others(tmp_path: Path, name: str, content: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_map(tmp_path)


def test_weights_in_one_file_and_in_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has neither model\.safetensors nor"):
        read_weights(tmp_path, "model")
    save_file({"a": torch.arange(3)}, tmp_path / "model.safetensors")
    assert torch.equal(read_weights(tmp_path, "model")["a"], torch.arange(3))
    save_file({"b": torch.ones(2)}, tmp_path / "second.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "second.safetensors"}}))
    found = read_weights(tmp_path, "model")
    assert set(found) == {"a", "b"}
    assert len(found) == 2
    assert torch.equal(found["b"], torch.ones(2))
    (tmp_path / "second.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks second\.safetensors, which model\.safetensors\.index"):
        read_weights(tmp_path, "model")
    index.write_text("[]")
    with pytest.raises(ValueError, match="is no index of shards"):
        read_weights(tmp_path, "model")
