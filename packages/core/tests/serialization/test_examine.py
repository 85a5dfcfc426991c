# SPDX-License-Identifier: Apache-2.0
"""What a folder holds, told from its files and compared with what the model says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import quanto
from quanto.serialization import FormatError
from quanto.serialization.examine import examine

Write = Callable[[dict[str, torch.Tensor], Path], None]


@pytest.fixture
def pair(tmp_path: Path, write_floats: Write) -> tuple[nn.Module, nn.Module, Path, Path]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3))
    write_floats(model.state_dict(), tmp_path / "float.safetensors")
    made = quanto.freeze(quanto.quantized(model, "int4", group_size=32, rules={"1": "int8"}))
    quanto.save(made, tmp_path / "out")
    return model, made, tmp_path / "out", tmp_path / "float.safetensors"


def test_it_finds_what_the_model_says(pair: tuple[nn.Module, nn.Module, Path, Path]) -> None:
    model, made, out, original = pair
    report = examine(out, original)
    expected = {layer.name: layer for layer in quanto.eval.sqnr(made, model).layers}
    assert {layer.name for layer in report.layers} == set(expected)
    for layer in report.layers:
        assert layer.sqnr == pytest.approx(expected[layer.name].sqnr, abs=1e-3)
        assert layer.bits == pytest.approx(expected[layer.name].bits)
        assert layer.shape == expected[layer.name].shape
    assert report.other_bytes == sum(b.nbytes for n, b in model.state_dict().items() if n.endswith("bias"))
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["shards"] == 1


def test_without_the_float_model_there_is_no_signal(pair: tuple[nn.Module, nn.Module, Path, Path]) -> None:
    assert all(layer.sqnr is None for layer in examine(pair[2]).layers)


def test_exact_weights_are_said_to_be(tmp_path: Path, write_floats: Write) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    nn.init.zeros_(model[0].weight)
    write_floats(model.state_dict(), tmp_path / "float.safetensors")
    quanto.save(quanto.freeze(quanto.quantized(model, "int8")), tmp_path / "out")
    row = examine(tmp_path / "out", tmp_path / "float.safetensors").to_dict()["layers"][0]
    assert (row["sqnr"], row["exact"]) == (None, True)


def test_another_float_model_is_refused(
    pair: tuple[nn.Module, nn.Module, Path, Path], tmp_path: Path, write_floats: Write
) -> None:
    write_floats({"0.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match=r"'0\.weight' has shape \(2, 2\), the quantized one \(32, 64\)"):
        examine(pair[2], tmp_path / "other.safetensors")
    write_floats({"x": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match=r"has no tensor '0\.weight'"):
        examine(pair[2], tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match=r"holds no quanto\.json"):
        examine(tmp_path)
