# SPDX-License-Identifier: Apache-2.0
"""The integration of a stranger, quanto-tinylm: its layer is quantized, its folders load, its command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

# Quantizes a model of tinylm's layers, and loads one that `tinylm quantize` wrote.
USE = """
import sys
from pathlib import Path
from safetensors.torch import load_file

quanto.quantize(torch.nn.Linear(4, 4), "int8")
found["imported early"] = "tinylm" in sys.modules
from tinylm import Conv1D

folder = Path(sys.argv[1])
x = torch.randn(5, 48)
model = torch.nn.Sequential(Conv1D(48, 96), torch.nn.GELU(), Conv1D(96, 7))
expected = model(x)
quanto.quantize(model, "nf4", group_size=16)
trainable = model(x)
trainable.sum().backward()
found["gradient"] = tuple(model[0].weight.grad.shape)
quanto.freeze(model)
layer = model[0]
found["shapes"] = tuple(layer.weight.shape), tuple(layer.weight_packed.shape), tuple(layer.weight_scale.shape)
found["kernel"] = quanto.explain(model).layers[0].kernel
found["trainable"] = float((trainable - model(x)).abs().max())
found["distance"] = float((model(x) - expected).square().mean().sqrt() / expected.square().mean().sqrt())
quanto.save(model, folder / "saved")
again = quanto.load(folder / "saved", torch.nn.Sequential(Conv1D(48, 96), torch.nn.GELU(), Conv1D(96, 7)))
found["equal"] = torch.equal(again(x), model(x))

theirs = load_file(folder / "theirs" / "tinylm-int8.safetensors")
loaded = quanto.load(folder / "theirs", torch.nn.Sequential(Conv1D(48, 20)))
found["frozen"] = loaded[0].frozen
expected = x @ (theirs["0.weight.int8"] * theirs["0.weight.scale"]) + theirs["0.bias"]
found["theirs"] = float((loaded(x) - expected).abs().max())
try:
    quanto.load(folder, Conv1D(48, 20))
except ValueError as error:
    found["error"] = str(error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are saved; in `theirs` one as `tinylm quantize` writes it."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (48, 20), dtype=torch.int8, generator=generator)
    scale = torch.rand(20, generator=generator) / 100
    (folder / "theirs").mkdir()
    tensors = {"0.weight.int8": codes, "0.weight.scale": scale, "0.bias": torch.randn(20, generator=generator)}
    save_file(tensors, folder / "theirs" / "tinylm-int8.safetensors")
    return folder


@pytest.fixture(scope="module")
def used(good: Any, folder: Path) -> dict[str, Any]:
    """What a process found that used the integration."""
    return good.find(USE, folder)  # type: ignore[no-any-return]


def test_register_modules_by_name_imports_the_library_only_where_it_is_used(used: dict[str, Any]) -> None:
    assert used["imported early"] is False


def test_register_modules_gives_the_layer_a_twin(used: dict[str, Any]) -> None:
    """The weight keeps its shape [in, out]; its codes are rows of [out, in], two to a byte."""
    assert used["gradient"] == [48, 96]
    assert used["shapes"] == [[48, 96], [96, 24], [96, 3]]
    assert used["kernel"] == "reference.linear"
    assert used["trainable"] < 1e-4
    assert 0 < used["distance"] < 0.2
    assert used["equal"]


def test_register_formats_lets_load_read_a_foreign_folder(used: dict[str, Any]) -> None:
    assert used["frozen"]
    assert used["theirs"] < 1e-4
    assert "quanto.json" in used["error"], "a folder that no format knows is an error"


def test_register_commands_adds_a_subcommand(good: Any, used: dict[str, Any], folder: Path) -> None:
    command = good.scripts / "quanto"
    assert good.run(command, "tinylm", folder / "theirs", PYTHONWARNINGS="ignore").strip() == "1"
    assert "Say how many layers" in good.run(command, "--help", PYTHONWARNINGS="ignore")


def test_info_lists_the_integration(good: Any) -> None:
    info = json.loads(good.run(good.scripts / "quanto", "info", "--json", PYTHONWARNINGS="ignore"))
    assert "tinylm" in info["formats"]
    assert {"int6", "tinylm"} <= {p["name"] for p in info["plugins"] if p["status"] == "loaded"}
