# SPDX-License-Identifier: Apache-2.0
"""Quantized keys and values: what is appended, what is exact, and `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import build
from transformers import DynamicCache, QuantizedCache
from transformers.cache_utils import DynamicLayer

from quanto_transformers import QuantoCacheLayer, QuantoConfig
from quanto_transformers import history as history_module
from quanto_transformers.kv_config import KVCacheConfig

Saved = Callable[..., Path]

#: largest error of a normal value in groups of 32, in units of their range.
ERROR = {"int8": 0.01, "int4": 0.08, "int2": 0.4, "float8": 0.05}


def states(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, 3, tokens, 32, generator=generator).to(dtype) for _ in "kv")
    keys[..., 5] *= 30  # keys have such channels
    return keys, values


def fill(layer: Any, steps: list[int], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    found: Any = None
    for i, tokens in enumerate(steps):
        found = layer.update(*states(tokens, i, dtype))
    return found


STEPS = [70, *[1] * 40, 9, *[1] * 30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", ERROR)
def test_near_the_exact_cache(weights: str, dtype: torch.dtype) -> None:
    layer = QuantoCacheLayer(weights, q_group_size=32, residual_length=32)
    exact = DynamicLayer()
    for i, tokens in enumerate(STEPS):
        keys, values = layer.update(*states(tokens, i, dtype))
        exact_keys, exact_values = exact.update(*states(tokens, i, dtype))
        assert keys.shape == exact_keys.shape
        assert keys.dtype == dtype
        assert layer.get_seq_length() == exact.get_seq_length()
        assert layer.get_mask_sizes(1) == exact.get_mask_sizes(1)
        for found, expected in ((keys, exact_keys), (values, exact_values)):
            scale = expected.abs().amax(dim=(0, 1, 2), keepdim=True)  # of each channel
            assert ((found - expected) / scale).abs().max() < ERROR[weights] + 0.01
            newest = layer.keys.shape[-2]
            if newest:
                assert torch.equal(found[..., -newest:, :], expected[..., -newest:, :])
    float_bytes = exact.keys.nbytes + exact.values.nbytes
    assert layer.nbytes < {"int8": 0.9, "int4": 0.75, "int2": 0.65, "float8": 0.9}[weights] * float_bytes


@pytest.mark.parametrize("weights", ["int4", "float8"])
def test_what_is_quantized_is_never_touched_again(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantoCacheLayer(weights, q_group_size=32, residual_length=64)
    fill(layer, [100])
    before = layer.old_keys.held.dequantize(), layer.old_values.held.dequantize()
    made: list[int] = []
    original = history_module.quantize_tensor

    def counted(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        made.append(x.numel())
        return original(x, *args, **kwargs)

    monkeypatch.setattr(history_module, "quantize_tensor", counted)
    fill(layer, [1] * 200)
    after = layer.old_keys.held.dequantize(), layer.old_values.held.dequantize()
    assert torch.equal(after[0][..., : before[0].shape[-1]], before[0])
    assert torch.equal(after[1][..., : before[1].shape[-2], :], before[1])
    tokens = layer.old_keys.length - 96
    assert sum(made) == 2 * 2 * 3 * 32 * tokens  # each token once, keys and values


def test_keys_per_channel_survive_outliers() -> None:
    """A channel thirty times larger than the others does not cost them their bits."""
    errors = {}
    for axis in (-1, 0):
        layer = QuantoCacheLayer(4, axis_key=axis, q_group_size=32, residual_length=32)
        keys, _ = states(64)
        layer.update(keys, keys)
        found = layer.update(*states(1, 1))[0][..., :64, :]
        ordinary = [c for c in range(32) if c != 5]
        errors[axis] = (found - keys)[..., ordinary].abs().mean().item()
    assert errors[-1] < 0.2 * errors[0]


def test_the_same_in_one_step_or_many() -> None:
    one, many = (QuantoCacheLayer(4, q_group_size=32, residual_length=32) for _ in "ab")
    keys, values = states(96)
    one.update(keys, values)
    for part in zip(keys.split(1, -2), values.split(1, -2), strict=True):
        many.update(*part)
    assert torch.equal(one.old_keys.held, many.old_keys.held)
    assert torch.equal(one.old_values.held, many.old_values.held)


def test_beams() -> None:
    layer, exact = QuantoCacheLayer(8, q_group_size=32, residual_length=32), DynamicLayer()
    fill(layer, STEPS), fill(exact, STEPS)
    order = torch.tensor([1, 1, 0])
    for method, argument in (
        ("reorder_cache", order),
        ("batch_repeat_interleave", 2),
        ("batch_select_indices", torch.tensor([4, 0])),
    ):
        for each in (layer, exact):
            getattr(each, method)(argument)
        keys, values = states(1, 99)
        batch = exact.keys.shape[0]
        keys, values = (t[:1].expand(batch, -1, -1, -1) for t in (keys, values))
        found, expected = layer.update(keys, values), exact.update(keys, values)
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, atol=0.5, rtol=0.02)


@pytest.mark.parametrize("count", [0, 1, 20, 50, 149, 150, 200])
def test_crop(count: int) -> None:
    layer = QuantoCacheLayer(8, q_group_size=32, residual_length=32)
    before = fill(layer, STEPS)[0]
    length = layer.get_seq_length()
    layer.crop(-count)
    kept = max(length - count, 0)
    assert layer.get_seq_length() == kept
    found = layer.update(*states(1, 7))[0]
    assert found.shape[-2] == kept + 1
    torch.testing.assert_close(found[..., :kept, :], before[..., :kept, :], atol=0.5, rtol=0.02)


def test_reset_and_move() -> None:
    layer = QuantoCacheLayer(4, q_group_size=32, residual_length=32)
    fill(layer, STEPS)
    layer.offload()
    layer.prefetch()
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.nbytes == 0
    keys, values = states(10)
    found = layer.update(keys, values)
    assert torch.equal(found[0], keys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nbits": 5}, "nbits must be one of"),
        ({"nbits": "int99"}, "unknown qtype"),
        ({"nbits": "nvfp4"}, "fixes its blocks"),
        ({"axis_key": 1}, "axis_key must be 0 or -1"),
        ({"q_group_size": 0}, "group_size must be a positive integer"),
        ({"nbits": 2, "q_group_size": 3}, "no whole bytes"),
        ({"residual_length": -1}, "residual_length must be a positive integer"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantoCacheLayer(**arguments)


def test_the_backend_of_transformers() -> None:
    config = build("llama").config
    cache = QuantizedCache("quanto", config, nbits=2, q_group_size=32)
    assert all(isinstance(layer, QuantoCacheLayer) for layer in cache.layers)
    default = inspect.signature(QuantizedCache).parameters["axis_key"].default  # 0 in transformers 5.17
    assert cache.layers[0].config == KVCacheConfig("int2", 32, 128, per_channel_keys=default != 0)


@pytest.mark.parametrize("nbits", [2, 4, 8, "float8", "nf4"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generate(nbits: int | str, beams: int) -> None:
    model = build("llama")
    ids = torch.arange(3, 23)[None]
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "num_beams": beams}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    exact = model.generate(ids, **options)
    settings = {"backend": "quanto", "nbits": nbits, "q_group_size": 8, "residual_length": 8}
    found = model.generate(ids, cache_implementation="quantized", cache_config=settings, **options)
    assert isinstance(found.past_key_values.layers[0], QuantoCacheLayer)
    assert found.sequences.shape == exact.sequences.shape
    assert torch.equal(found.logits[0], exact.logits[0])  # of the prompt, which is still exact
    if nbits == 8 and beams == 1:
        assert torch.equal(found.sequences[:, :26], exact.sequences[:, :26])
        torch.testing.assert_close(found.logits[3], exact.logits[3], atol=0.1, rtol=0)


def test_a_model_with_a_cache_of_its_own(saved: Saved, tmp_path: Path) -> None:
    config = QuantoConfig("int8", kv_cache={"weights": "int4", "group_size": 8, "residual_length": 16})
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(saved("llama"), quantization_config=config)
    ids = torch.arange(3, 43)[None]
    model.save_pretrained(tmp_path)
    for each in (model, load(tmp_path)):
        out = each.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        layer = out.past_key_values.layers[0]
        assert layer.config == KVCacheConfig("int4", 8, 16)
        assert layer.old_keys.length == 40
    plain = model.generate(ids, max_new_tokens=4, cache_implementation="dynamic", return_dict_in_generate=True)
    assert isinstance(plain.past_key_values, DynamicCache)
    other = load(tmp_path, quantization_config=QuantoConfig(kv_cache={"nbits": 8}))
    assert other.generation_config.cache_config["nbits"] == "int8"
