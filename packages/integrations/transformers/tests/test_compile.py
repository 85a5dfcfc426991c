# SPDX-License-Identifier: Apache-2.0
"""`generate` with a static cache compiles whole, once for the prompt and once for all tokens after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import auto_class, inputs
from torch._dynamo.utils import counters

from quanto_transformers import QuantoConfig, calibrate

Saved = Callable[..., Path]

CASES: list[tuple[str, dict[str, Any], torch.dtype]] = [
    ("llama", {"weights": "int8"}, torch.float32),
    ("llama", {"weights": "int8"}, torch.bfloat16),
    ("llama", {"weights": "int4", "group_size": 32}, torch.bfloat16),
    ("llama", {"weights": "int8", "activations": "int8"}, torch.float32),
    ("llama-tied", {"weights": "int4", "lm_head": True, "embeddings": True}, torch.float32),
    ("qwen3", {"weights": "int8"}, torch.float32),
    ("gemma3", {"weights": "int4"}, torch.float32),
    ("gpt2", {"weights": "int4"}, torch.float32),
    ("mixtral", {"weights": "int4"}, torch.float32),
    ("gpt-oss", {"weights": "int8"}, torch.float32),
]


def generate(model: Any, follow: torch.Tensor | None = None) -> Any:
    """Eight tokens: the likeliest, or those of another sequence, since a rounding may decide between two at a tie."""
    options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": "static", "disable_compile": True}
    if follow is not None:
        options["prefix_allowed_tokens_fn"] = lambda _, ids: [int(follow[0, ids.shape[-1]])]
    ids = inputs("llama")["input_ids"][:1].to(model.device)
    return model.generate(ids, return_dict_in_generate=True, output_logits=True, **options)


def compare(model: Any, backend: str) -> None:
    on_cpu = model.device.type == "cpu"
    rounds = model.dtype != torch.float32 or model.config.quantization_config.activations is not None
    atol = 5e-2 if rounds else 1e-4 if on_cpu else 5e-3  # a GPU may multiply in TF32
    expected = generate(model)
    torch.compiler.reset()
    counters.clear()
    model.forward = torch.compile(model.forward, fullgraph=True, backend=backend)
    found = generate(model, expected.sequences)
    assert counters["stats"]["unique_graphs"] == 2  # the prompt, and one token
    assert not counters["graph_break"]
    for a, b in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-3 if on_cpu else 1e-2)


@pytest.mark.parametrize(("name", "config", "dtype"), CASES, ids=lambda v: v if isinstance(v, str) else None)
def test_whole_and_without_recompiling(name: str, config: dict, dtype: torch.dtype, saved: Saved) -> None:
    folder = saved(name, dtype)
    compare(auto_class(name).from_pretrained(folder, quantization_config=QuantoConfig(**config)), "aot_eager")


def test_static_activations(saved: Saved) -> None:
    config = QuantoConfig("int8", "int8")
    model = auto_class("opt").from_pretrained(saved("opt"), quantization_config=config)
    calibrate(model, [inputs("opt")])
    compare(model, "aot_eager")


@pytest.mark.slow
def test_by_inductor(saved: Saved) -> None:
    config = QuantoConfig("int4", group_size=32)
    compare(auto_class("llama").from_pretrained(saved("llama"), quantization_config=config), "inductor")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "config", "dtype"), CASES, ids=lambda v: v if isinstance(v, str) else None)
def test_on_a_gpu(name: str, config: dict, dtype: torch.dtype, saved: Saved) -> None:
    options = {"quantization_config": QuantoConfig(**config), "device_map": "cuda"}
    compare(auto_class(name).from_pretrained(saved(name, dtype), **options), "inductor")


def test_transformers_may_compile_by_itself(saved: Saved) -> None:
    model = auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig())
    assert model.hf_quantizer.is_compileable
