# SPDX-License-Identifier: Apache-2.0
"""Folders that optimum-quanto saved, written here by its documented layout, one number after another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import auto_class, build, run
from torch import Tensor, nn
from transformers import AutoModel
from transformers.core_model_loading import revert_weight_conversion

from quanto.hosts.upstream import group_size
from quanto.nn import QModule
from quanto_transformers import QuantoConfig
from quanto_transformers.inherited import parse_map

FLOATS = {
    "qfloat8_e4m3fn": torch.float8_e4m3fn,
    "qfloat8_e5m2": torch.float8_e5m2,
    "qfloat8_e4m3fnuz": torch.float8_e4m3fnuz,
}
QTYPES = ["qint8", "qint4", "qint2", *FLOATS]


def by_bytes(codes: Tensor, bits: int) -> Tensor:
    """Byte row r: codes of rows r, r + R, r + 2R … from the lowest bits."""
    each = 8 // bits
    count = -(-codes.shape[0] // each)
    packed = torch.zeros(count, codes.shape[1], dtype=torch.uint8)
    for row in range(codes.shape[0]):
        packed[row % count] |= codes[row].to(torch.uint8) << (bits * (row // count))
    return packed


def old_parts(weight: Tensor, qtype: str, whole: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a weight in the old layout, and the weight they stand for.

    Args:
        weight: [out, in] or [out, in, kh, kw].
        qtype: its name there.
        whole: whether shifts are integers.
    """
    rows = weight.flatten(1)
    if qtype not in ("qint4", "qint2"):
        top = 127 if qtype == "qint8" else torch.finfo(FLOATS[qtype]).max
        scale = rows.abs().amax(1, keepdim=True) / top
        data = (rows / scale).round() if qtype == "qint8" else rows / scale
        data = data.clamp(-top, top).to(FLOATS.get(qtype, torch.int8))
        out = (data.to(weight.dtype) * scale).view_as(weight)
        ones = (1,) * (weight.ndim - 1)
        return {"_data": data.view(weight.shape), "_scale": scale.view(-1, *ones)}, out
    bits = int(qtype[-1])
    groups = rows.reshape(-1, group_size(rows.shape[1]) or rows.shape[1])
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    shift = (-low / scale).round().to(torch.int8) if whole else -low
    codes = groups / scale + shift if whole else (groups + shift) / scale
    codes = codes.round().clamp(0, 2**bits - 1)
    out = scale * (codes - shift) if whole else scale * codes - shift
    return {"_data._data": by_bytes(codes, bits), "_scale": scale, "_shift": shift}, out.view_as(weight)


def save_old(model: Any, folder: Path, qtype: str, whole: bool = False, shards: bool = False) -> None:
    """Writes the folder, and gives the model the weights that it stands for."""
    model.save_pretrained(folder)
    tensors, qmap = load_file(folder / "model.safetensors"), {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name != "lm_head":
            (key,) = revert_weight_conversion(model, {f"{name}.weight": module.weight})
            old = key.removesuffix(".weight")  # some families had other names then
            parts, value = old_parts(tensors.pop(key), qtype, whole)
            tensors |= {f"{key}.{k}": v.contiguous() for k, v in parts.items()}
            tensors |= {f"{old}.{n}_scale": torch.ones((), dtype=value.dtype) for n in ("input", "output")}
            qmap[old] = {"weights": qtype, "activations": "none"}
            module.weight.data = value
    if shards:
        names = sorted(tensors)
        halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, held in halves.items():
            save_file({n: tensors[n] for n in held}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {n: file for file, held in halves.items() for n in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors").unlink()
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "quanto_qmap.json").write_text(json.dumps(qmap))


@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("name", ["llama", "vit"])
def test_logits_and_what_is_saved_again(name: str, qtype: str, tmp_path: Path) -> None:
    expected = build(name)
    save_old(expected, tmp_path / "old", qtype)
    model = auto_class(name).from_pretrained(tmp_path / "old")
    found = run(model, name)
    torch.testing.assert_close(found, run(expected, name), atol=2e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "new")
    again = auto_class(name).from_pretrained(tmp_path / "new")
    assert torch.equal(run(again, name), found)
    assert not (tmp_path / "new" / "quanto_qmap.json").exists()


@pytest.mark.parametrize("size", [160, 192, 256, 136])
def test_groups(size: int, tmp_path: Path) -> None:
    expected = build("llama", hidden_size=size, head_dim=16)
    save_old(expected, tmp_path, "qint4")
    model = auto_class("llama").from_pretrained(tmp_path)
    assert model.model.layers[0].self_attn.q_proj.scheme.group_size == {160: 32, 192: 96, 256: 128}.get(size)
    torch.testing.assert_close(run(model, "llama"), run(expected, "llama"), atol=2e-5, rtol=1e-4)


def test_whole_shifts_shards_half_precision_and_the_base_model(tmp_path: Path) -> None:
    expected = build("llama")
    save_old(expected, tmp_path, "qint2", whole=True, shards=True)
    model = auto_class("llama").from_pretrained(tmp_path)
    torch.testing.assert_close(run(model, "llama"), run(expected, "llama"), atol=2e-5, rtol=1e-4)
    base = AutoModel.from_pretrained(tmp_path)
    assert sum(isinstance(m, QModule) for m in base.modules()) == 14
    torch.testing.assert_close(run(base, "llama"), run(expected.model, "llama"), atol=2e-5, rtol=1e-4)
    half = auto_class("llama").from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(run(half, "llama").float(), run(expected, "llama"), atol=0.1, rtol=0.05)


def test_embedding_convolutions(tmp_path: Path) -> None:
    expected = build("vit")
    save_old(expected, tmp_path, "qint8")
    model = auto_class("vit").from_pretrained(tmp_path)
    found = [n for n, m in model.named_modules() if isinstance(m, QModule) and hasattr(m, "kernel_size")]
    assert found == ["vit.embeddings.patch_embeddings.projection"]


def test_groups_of_one_number(tmp_path: Path) -> None:
    expected = build("llama")
    with torch.no_grad():
        expected.model.layers[0].mlp.up_proj.weight[3] = 0.5
    save_old(expected, tmp_path, "qint4")
    tensors = load_file(tmp_path / "model.safetensors")
    assert not tensors["model.layers.0.mlp.up_proj.weight._scale"][3].any()
    weight = auto_class("llama").from_pretrained(tmp_path).model.layers[0].mlp.up_proj.weight.dequantize()
    torch.testing.assert_close(weight[3], torch.full((64,), 0.5), atol=1e-6, rtol=0)


def test_activations(tmp_path: Path) -> None:
    save_old(build("llama"), tmp_path, "qint8")
    path, tensors = tmp_path / "quanto_qmap.json", load_file(tmp_path / "model.safetensors")
    path.write_text(path.read_text().replace('"activations": "none"', '"activations": "qint8"'))
    with pytest.raises(ValueError, match=r"q_proj.input_scale is 1: its activations were never calibrated"):
        auto_class("llama").from_pretrained(tmp_path)
    tensors = {n: torch.tensor(0.03) if n.endswith("input_scale") else t for n, t in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model = auto_class("llama").from_pretrained(tmp_path)
    layer = model.model.layers[1].mlp.down_proj
    assert layer.input_scale.item() == pytest.approx(0.03)
    x = torch.randn(3, 96)
    rounded = (x / 0.03).round().clamp(-127, 127) * 0.03
    torch.testing.assert_close(layer(x), rounded @ layer.weight.dequantize().T, atol=1e-5, rtol=1e-5)


def test_dequantize(tmp_path: Path) -> None:
    expected = build("llama")
    save_old(expected, tmp_path, "qint4")
    model = auto_class("llama").from_pretrained(tmp_path, quantization_config=QuantoConfig(dequantize=True))
    assert not any(isinstance(m, QModule) for m in model.modules())
    torch.testing.assert_close(run(model, "llama"), run(expected, "llama"), atol=2e-5, rtol=1e-4)


def _drop(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def _truncate(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name][:-1].clone()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def _map(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "quanto_qmap.json").write_text(text) and None


LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop(f"{LAYER}.weight._scale"), f"lacks '{LAYER}.weight._scale'"),
        (_drop(f"{LAYER}.weight._shift"), rf"model.safetensors: {LAYER}.weight._shift is missing"),
        (_truncate(f"{LAYER}.weight._data._data"), rf"model.safetensors: {LAYER}.weight._data._data has shape"),
        (_truncate(f"{LAYER}.weight._scale"), rf"model.safetensors: {LAYER}.weight._scale has shape"),
        (_map("{"), "quanto_qmap.json cannot be read"),
        (_map("[]"), "quanto_qmap.json must hold an object, not list"),
        (_map("{}"), "names no module of LlamaForCausalLM"),
        (_map('{"a": {"weights": "qint3", "activations": "none"}}'), "weights of 'a' must be none or one of .*'qint3'"),
        (_map('{"a": {"weights": "qint4"}}'), "'a' must be an object with weights and activations"),
        (
            _map('{"model.gone": {"weights": "qint8", "activations": "none"}}'),
            "'model.gone', which Llama.* does not",
        ),
        (_map('{"model.norm": {"weights": "qint8", "activations": "none"}}'), "'model.norm', which is a LlamaRMSNorm"),
    ],
)
def test_damage_is_named(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    save_old(build("llama"), tmp_path, "qint4")
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        auto_class("llama").from_pretrained(tmp_path)


@pytest.mark.parametrize(("width", "group"), [(128, None), (256, 128), (192, 96), (704, 64), (352, 32), (4304, None)])
def test_group_size(width: int, group: int | None) -> None:
    assert group_size(width) == group


def test_map_of_a_norm(tmp_path: Path) -> None:
    path = tmp_path / "quanto_qmap.json"
    path.write_text('{"norm": {"weights": "none", "activations": "qint8"}}')
    assert parse_map(str(path)) == {"norm": {"weights": None, "activations": "int8"}}


def test_float_models_are_left_alone(saved: Callable[..., Path]) -> None:
    model = auto_class("llama").from_pretrained(saved("llama"))
    assert not hasattr(model.config, "quantization_config")
    assert not re.search("quanto", type(model.model.layers[0].mlp.up_proj).__module__)
