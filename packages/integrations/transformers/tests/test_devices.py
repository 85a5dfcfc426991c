# SPDX-License-Identifier: Apache-2.0
"""Device maps: what is quantized while it is loaded may be offloaded to the CPU and to the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import auto_class, build, run

from quanto.nn import QModule
from quanto_transformers import QuantoConfig

Saved = Callable[..., Path]

MAPS: dict[str, dict[str, str]] = {
    "llama": {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    | {"model.norm": "disk", "lm_head": "cpu"},
    "mixtral": {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "disk"}
    | {"model.layers.1": "cpu", "model.norm": "cpu", "lm_head": "disk"},
    "gpt2": {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu", "transformer.h.0": "disk"}
    | {"transformer.h.1": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"},
}


def load(name: str, folder: Path, **kwargs: Any) -> Any:
    return auto_class(name).from_pretrained(folder, **kwargs)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("name", MAPS)
def test_cpu_and_disk(name: str, weights: str, saved: Saved, tmp_path: Path) -> None:
    config = QuantoConfig(weights, group_size=32 if weights == "int4" else None)
    whole = load(name, saved(name), quantization_config=config)
    expected = run(whole, name)
    options = {"device_map": MAPS[name], "offload_folder": tmp_path / "off"}

    spread = load(name, saved(name), quantization_config=config, **options)
    assert any(p.is_meta for m in spread.modules() if isinstance(m, QModule) for p in m.parameters(recurse=False))
    assert torch.equal(run(spread, name), expected)
    with pytest.warns(UserWarning, match="save a model with offloaded modules"):
        spread.save_pretrained(tmp_path / "a")
    assert torch.equal(run(load(name, tmp_path / "a"), name), expected)

    again = load(name, tmp_path / "a", **options)
    assert torch.equal(run(again, name), expected)


def test_auto(saved: Saved) -> None:
    model = load("llama", saved("llama"), quantization_config=QuantoConfig("int4"), device_map="auto")
    expected = run(load("llama", saved("llama"), quantization_config=QuantoConfig("int4")), "llama")
    assert torch.allclose(run(model, "llama").cpu(), expected, atol=1e-4)


@pytest.mark.parametrize("pre_quantized", [False, True])
def test_maps_are_made_of_true_sizes(pre_quantized: bool, saved: Saved, tmp_path: Path) -> None:
    """A memory that holds the quantized model, and not the float one, holds it all."""
    folder = saved("llama")
    config: dict[str, Any] = {"quantization_config": QuantoConfig("int8")}
    whole = load("llama", folder, **config)
    if pre_quantized:
        whole.save_pretrained(tmp_path)
        folder, config = tmp_path, {}
    options: dict[str, Any] = {"device_map": "sequential", "offload_folder": tmp_path / "off", **config}
    size = whole.get_memory_footprint()
    model = load("llama", folder, max_memory={"cpu": int(1.3 * size)}, **options)
    assert not hasattr(model, "hf_device_map")  # all on one device
    model = load("llama", folder, max_memory={"cpu": int(0.9 * size)}, **options)
    assert "disk" in model.hf_device_map.values()


GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected.cpu(), atol=5e-3, rtol=5e-3)  # a GPU may multiply in TF32


@pytest.mark.gpu
@GPUS
@pytest.mark.parametrize("name", MAPS)
def test_several_gpus(name: str, saved: Saved, tmp_path: Path) -> None:
    config, numbers = QuantoConfig("int8"), {"cpu": 0, "disk": 1}
    whole = load(name, saved(name), quantization_config=config, device_map=0)
    where = {module: numbers[device] for module, device in MAPS[name].items()}
    spread = load(name, saved(name), quantization_config=config, device_map=where)
    assert {p.device.index for p in spread.parameters()} == {0, 1}
    near(run(spread, name), run(whole, name))
    spread.save_pretrained(tmp_path)
    assert torch.equal(run(load(name, tmp_path, device_map=0), name), run(whole, name))


@pytest.mark.gpu
@GPUS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_auto_over_several_gpus(dtype: torch.dtype, tmp_path: Path) -> None:
    build("llama", dtype, num_hidden_layers=8).save_pretrained(tmp_path / "float")
    options: dict[str, Any] = {"quantization_config": QuantoConfig("int4", group_size=32), "dtype": dtype}
    whole = load("llama", tmp_path / "float", device_map=0, **options)
    memory = dict.fromkeys((0, 1), int(0.75 * whole.get_memory_footprint()))
    spread = load("llama", tmp_path / "float", device_map="auto", max_memory=memory, **options)
    assert set(spread.hf_device_map.values()) == {0, 1}
    if dtype == torch.float32:
        near(run(spread, "llama"), run(whole, "llama"))
    else:
        assert torch.equal(run(spread, "llama").cpu(), run(whole, "llama").cpu())
