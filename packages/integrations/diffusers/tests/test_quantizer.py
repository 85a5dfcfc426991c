# SPDX-License-Identifier: Apache-2.0
"""Models are quantized while they load, saved, and reloaded as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import NAMES, build, cls, run
from torch import nn

import quanto
from quanto.nn import QModule
from quanto_diffusers import QuantoConfig

Saved = Callable[[str], Path]


def load(name: str, folder: Path, *args: object, dtype: torch.dtype = torch.float32, **fields: object):
    return cls(name).from_pretrained(folder, torch_dtype=dtype, quantization_config=QuantoConfig(*args, **fields))


def run_aligned(model: nn.Module, name: str) -> torch.Tensor:
    """Its output, of a copy: on Zen 4 a float layer's sums depend on where the file left its weights in memory."""
    return run(copy.deepcopy(model), name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_reloads_bit_equal(name: str, weights: str, saved: Saved, tmp_path: Path) -> None:
    model = load(name, saved(name), weights)
    kept = set(model._keep_in_fp32_modules or ())
    left = [n for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d) and not kept & set(n.split("."))]
    assert left == []
    expected = run_aligned(model, name)
    error = (expected - run(build(name), name)).norm() / run(build(name), name).norm()
    assert 0 < error < (0.06 if weights == "int8" else 0.6)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    again = cls(name).from_pretrained(tmp_path)
    assert torch.equal(run_aligned(again, name), expected)
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(run_aligned(cls(name).from_pretrained(tmp_path / "again"), name), expected)


@pytest.mark.parametrize("weights", ["int8", "int4", "int3", "int2", "float8", "nf4", "fp4", "mxfp4"])
def test_is_what_core_makes_of_the_float_model(weights: str, saved: Saved, tmp_path: Path) -> None:
    """And survives a reload in half precision, which would cast its scales."""
    model = load("unet", saved("unet"), weights, dtype=torch.bfloat16)
    other = quanto.freeze(quanto.quantize(build("unet").to(torch.bfloat16), weights))
    quanto.arrange(other, "canonical")
    mine, its = model.state_dict(), other.state_dict()
    assert mine.keys() == its.keys()
    assert not [n for n in mine if mine[n].dtype != its[n].dtype or not torch.equal(mine[n], its[n])]
    model.save_pretrained(tmp_path)
    assert (
        again := cls("unet").from_pretrained(tmp_path, torch_dtype=torch.bfloat16).state_dict()
    ).keys() == mine.keys()
    assert not [n for n in mine if mine[n].dtype != again[n].dtype or not torch.equal(mine[n], again[n])]
    assert model.dtype == torch.bfloat16


def test_scales_of_another_dtype_are_not_cast(saved: Saved, tmp_path: Path) -> None:
    model = load("flux", saved("flux"), "int8", scale_dtype="float32", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = cls("flux").from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    scale = "proj_out.weight_scale"
    assert again.state_dict()[scale].dtype == torch.float32
    assert torch.equal(again.state_dict()[scale], model.state_dict()[scale])


def test_rules_decide_by_whole_path(saved: Saved) -> None:
    rules = {"transformer_blocks.0.attn.*": "int4", "re:.*norm.*": None, "proj_out": {"weights": "float8"}}
    model = load("flux", saved("flux"), "int8", rules=rules, modules_to_not_convert=["x_embedder"])
    schemes = {n: m.scheme.weights for n, m in model.named_modules() if isinstance(m, QModule)}
    assert schemes["transformer_blocks.0.attn.to_q"] == "int4"
    assert schemes["single_transformer_blocks.0.attn.to_q"] == "int8"
    assert schemes["proj_out"] == "float8_e4m3fn"
    assert not [n for n in schemes if "norm" in n or n == "x_embedder"]


def test_a_rule_for_nothing_is_refused(saved: Saved) -> None:
    with pytest.raises(ValueError, match=r"'\*\.to_qq' matches no module"):
        load("flux", saved("flux"), "int8", rules={"*.to_qq": "int4"})


def test_what_the_model_wants_in_float32_stays(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ["proj_out"]
    monkeypatch.setattr(cls("flux"), "_keep_in_fp32_modules", kept)
    model = load("flux", saved("flux"), "int8", dtype=torch.bfloat16, modules_to_not_convert=["x_embedder"])
    assert type(model.proj_out) is nn.Linear
    assert model.proj_out.weight.dtype == torch.float32
    assert kept == ["proj_out"]


def test_dequantize(saved: Saved, tmp_path: Path) -> None:
    model = load("unet", saved("unet"), "int8")
    expected = run(model, "unet")
    model.save_pretrained(tmp_path)
    model.dequantize()
    assert not any(isinstance(m, QModule) for m in model.modules())
    torch.testing.assert_close(run(model, "unet"), expected, rtol=1e-4, atol=1e-5)
    model.half()
    model.float().save_pretrained(tmp_path / "float")
    assert "quantization_config" not in (tmp_path / "float" / "config.json").read_text()
    floats = load("unet", tmp_path, "int8", dequantize=True)
    assert isinstance(next(iter(floats.modules())), nn.Module)


def test_sizes_and_counts(saved: Saved) -> None:
    model, full = load("flux", saved("flux"), "int8"), build("flux")
    assert model.num_parameters() == full.num_parameters()
    assert model.get_memory_footprint() < full.get_memory_footprint() / 3


def test_a_missing_or_misshapen_part_is_named(saved: Saved, tmp_path: Path) -> None:
    load("flux", saved("flux"), "int8").save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    scale = state.pop("proj_out.weight_scale")
    save_file(state, path)
    with pytest.raises(ValueError, match=r"lacks 'proj_out\.weight_scale'"):
        cls("flux").from_pretrained(tmp_path)
    save_file({**state, "proj_out.weight_scale": scale[:-1].clone()}, path)
    with pytest.raises(ValueError, match=r"proj_out\.weight_scale has shape \(3, 1\) where the model needs \(4, 1\)"):
        cls("flux").from_pretrained(tmp_path)


def test_a_folder_of_a_newer_version_is_refused(saved: Saved, tmp_path: Path) -> None:
    load("flux", saved("flux"), "int8").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(ValueError, match=r"format version 7.*upgrade it"):
        cls("flux").from_pretrained(tmp_path)


def test_quantization_aware_training(saved: Saved, tmp_path: Path) -> None:
    model = load("flux", saved("flux"), "int8", qat=True)
    layer = model.proj_out
    assert layer.weight.requires_grad
    assert not layer.frozen
    quanto.freeze(model)
    expected = run(model, "flux")
    model.save_pretrained(tmp_path)
    assert torch.equal(run(cls("flux").from_pretrained(tmp_path), "flux"), expected)


def test_from_single_file(saved: Saved, tmp_path: Path) -> None:
    """A file of floats is quantized; one of codes is taken as it is."""
    config = {"config": str(saved("flux")), "torch_dtype": torch.float32}
    path = saved("flux") / "diffusion_pytorch_model.safetensors"
    model = cls("flux").from_single_file(str(path), quantization_config=QuantoConfig("int8"), **config)
    expected = run(model, "flux")
    assert torch.equal(run(load("flux", saved("flux"), "int8"), "flux"), expected)
    model.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    again = cls("flux").from_single_file(str(path), quantization_config=QuantoConfig("int8"), **config)
    assert torch.equal(run(again, "flux"), expected)
    with pytest.raises(ValueError, match=r"weight_(packed|scale) has shape"):
        cls("flux").from_single_file(str(path), quantization_config=QuantoConfig("int4"), **config)


#: names in files of Wan's own format, and here.
WAN = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    ".attn1.": ".self_attn.",
    ".attn2.": ".cross_attn.",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    ".ffn.net.0.proj": ".ffn.0",
    ".ffn.net.2": ".ffn.2",
    ".norm2": ".norm3",
    ".scale_shift_table": ".modulation",
}


def test_from_single_file_of_another_format(saved: Saved, tmp_path: Path) -> None:
    """diffusers translates names first."""
    state = load_file(saved("wan") / "diffusion_pytorch_model.safetensors")
    others = {}
    for name, tensor in state.items():
        for here, there in WAN.items():
            name = name.replace(here, there)
        others[name.replace("proj_out", "head.head").replace("scale_shift_table", "head.modulation")] = tensor
    save_file(others, tmp_path / "wan.safetensors")
    model = cls("wan").from_single_file(
        str(tmp_path / "wan.safetensors"), config=str(saved("wan")), quantization_config=QuantoConfig("int8")
    )
    assert torch.equal(run(model, "wan"), run(load("wan", saved("wan"), "int8"), "wan"))
