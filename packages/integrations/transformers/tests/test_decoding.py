# SPDX-License-Identifier: Apache-2.0
"""`decode_ahead`: the texts of transformers' own loop, whatever ends them, without asking the device in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import auto_class
from transformers import CompileConfig, StoppingCriteria, StoppingCriteriaList

from quanto_transformers import QuantoConfig, decode_ahead

Saved = Callable[..., Path]


@pytest.fixture
def model(saved: Saved) -> Any:
    return auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig("int8"))


def both(model: Any, **options: Any) -> tuple[Any, Any]:
    """The texts of transformers' loop, and of ours."""
    torch.manual_seed(0)
    ids = torch.randint(3, 300, (3, 9))
    options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, **options}
    found = []
    for loop in (None, decode_ahead):
        torch.manual_seed(1)
        found.append(model.generate(ids, custom_generate=loop, **options))
    return found[0], found[1]


@pytest.mark.parametrize("cache", [None, "static"])
def test_texts_of_a_given_length(model: Any, cache: str | None) -> None:
    want, got = both(model, max_new_tokens=12, min_new_tokens=12, cache_implementation=cache)
    assert torch.equal(got, want)
    assert got.shape == (3, 21)


@pytest.mark.parametrize("at", [9, 11, 16, 20])
def test_texts_that_end(model: Any, at: int) -> None:
    """Each text is cut where an end was found, and the row of texts where the last of them ended."""
    free, _ = both(model, max_new_tokens=12, eos_token_id=-1)
    ends = sorted({int(t) for t in free[:, at]})
    want, got = both(model, max_new_tokens=12, eos_token_id=ends)
    assert torch.equal(got, want)
    assert got.shape[1] <= at + 1


def test_samples(model: Any) -> None:
    want, got = both(model, max_new_tokens=8, do_sample=True, temperature=0.7, top_k=20)
    assert torch.equal(got, want)


def test_the_device_is_asked_one_token_late(model: Any) -> None:
    """The forward pass after the last token has begun when the end is seen, and its token is dropped."""

    class Third(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((ids.shape[0],), ids.shape[1] >= 12, dtype=torch.bool)

    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    want, got = both(model, max_new_tokens=30, stopping_criteria=StoppingCriteriaList([Third()]))
    assert torch.equal(got, want)
    assert got.shape[1] == 12
    assert len(calls) == 3 + 4


def test_what_is_left_to_transformers(model: Any) -> None:
    want, got = both(model, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(got.sequences, want.sequences)
    assert len(got.logits) == 4
    want, got = both(model, max_new_tokens=4, use_cache=False)
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match="num_beams is 2"):
        both(model, max_new_tokens=4, num_beams=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_texts_are_the_same(saved: Saved) -> None:
    """With CUDA graphs, which are replayed before the host has seen the token."""
    folder = saved("llama", torch.bfloat16)
    model = auto_class("llama").from_pretrained(folder, quantization_config=QuantoConfig("int8"), device_map="cuda")
    ids = torch.randint(3, 300, (2, 9), device="cuda")
    options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, "min_new_tokens": 20}
    options |= {"max_new_tokens": 20, "cache_implementation": "static"}
    want = model.generate(ids, compile_config=CompileConfig(mode="default"), **options)
    for _ in range(3):
        assert torch.equal(model.generate(ids, custom_generate=decode_ahead, **options), want)
