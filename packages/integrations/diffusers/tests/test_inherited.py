# SPDX-License-Identifier: Apache-2.0
"""Folders that diffusers wrote with optimum-quanto: `weight._data`, and one qtype in the config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import build, cls, run
from torch import Tensor, nn

from quanto.hosts.upstream import group_size

FILE = "diffusion_pytorch_model.safetensors"


def encode(weight: Tensor, qtype: str) -> tuple[dict[str, Tensor], Tensor]:
    """What optimum-quanto 0.2.7 stores of a weight, and the weight that it stands for."""
    rows = weight.flatten(1)
    if qtype in ("int8", "float8"):
        largest, dtype = (127, torch.int8) if qtype == "int8" else (448, torch.float8_e4m3fn)
        scale = rows.abs().amax(1, keepdim=True) / largest
        codes = (rows / scale).round().to(dtype) if qtype == "int8" else (rows / scale).to(dtype)
        shape = (-1, *[1] * (weight.ndim - 1))
        return {"_data": codes.view(weight.shape), "_scale": scale.view(shape)}, (codes.float() * scale).view_as(weight)
    bits = int(qtype[3:])
    groups = rows.reshape(-1, group_size(rows.shape[1]) or rows.shape[1])
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale, shift = (high - low) / (2**bits - 1), -low
    codes = ((groups + shift) / scale).round().clamp(0, 2**bits - 1).to(torch.uint8)
    each = 8 // bits
    height = -(-len(codes) // each)
    padded = torch.cat([codes, codes.new_zeros(height * each - len(codes), codes.shape[1])])
    data = torch.zeros(height, codes.shape[1], dtype=torch.uint8)
    for i, part in enumerate(padded.view(each, height, -1)):
        data |= part << (bits * i)
    return {"_data._data": data, "_scale": scale, "_shift": shift}, (scale * codes - shift).view_as(weight)


def write(folder: Path, name: str, source: Path, qtype: str) -> nn.Module:
    """Such a folder; the float model of what it stands for."""
    model, state = build(name), load_file(source / FILE)
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            parts, value = encode(state.pop(f"{path}.weight"), qtype)
            state |= {f"{path}.weight.{part}": tensor.contiguous() for part, tensor in parts.items()}
            state |= {f"{path}.{scale}": torch.ones(()) for scale in ("input_scale", "output_scale")}
            module.weight.data = value
    save_file(state, folder / FILE)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "quanto",
        "weights_dtype": qtype,
        "modules_to_not_convert": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("qtype", ["int8", "float8", "int4", "int2"])
def test_means_the_same_here(qtype: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    expected = run(write(tmp_path, "sd3", saved("sd3"), qtype), "sd3")
    model = cls("sd3").from_pretrained(tmp_path)
    assert model.proj_out.frozen
    torch.testing.assert_close(run(model, "sd3"), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "ours")
    assert torch.equal(run(cls("sd3").from_pretrained(tmp_path / "ours"), "sd3"), run(model, "sd3"))


def test_what_is_missing_or_wrong_is_named(saved: Callable[[str], Path], tmp_path: Path) -> None:
    write(tmp_path, "sd3", saved("sd3"), "int8")
    state = load_file(tmp_path / FILE)
    scale = state.pop("proj_out.weight._scale")
    save_file(state, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"proj_out\.weight\._scale is missing"):
        cls("sd3").from_pretrained(tmp_path)
    state |= {"proj_out.weight._scale": scale, "proj_out.weight._data": state["proj_out.weight._data"][:-1].clone()}
    save_file(state, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"proj_out\.weight\._data has shape"):
        cls("sd3").from_pretrained(tmp_path)


def test_floats_under_a_config_of_codes_are_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    write(tmp_path, "sd3", saved("sd3"), "int8")
    save_file(load_file(saved("sd3") / FILE), tmp_path / FILE)
    with pytest.raises(ValueError, match=r"safetensors says that it is quantized .* holds no codes"):
        cls("sd3").from_pretrained(tmp_path)
