# SPDX-License-Identifier: Apache-2.0
"""Device maps: what is quantized while it is loaded may be offloaded to the CPU and to the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import auto_class, run

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


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", MAPS)
def test_several_gpus(name: str, saved: Saved, tmp_path: Path) -> None:
    config = QuantoConfig("int8")
    whole = load(name, saved(name), quantization_config=config, device_map=0)
    size = whole.get_memory_footprint()
    memory: dict[Any, int] = {0: int(0.8 * size), 1: size, "cpu": 0}
    spread = load(name, saved(name), quantization_config=config, device_map="auto", max_memory=memory)
    assert set(spread.hf_device_map.values()) == {0, 1}
    torch.testing.assert_close(run(spread, name), run(whole, name), atol=1e-4, rtol=1e-3)
    spread.save_pretrained(tmp_path)
    assert torch.equal(run(load(name, tmp_path, device_map=0), name), run(whole, name))
