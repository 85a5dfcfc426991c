# SPDX-License-Identifier: Apache-2.0
"""`decode_ahead`: the texts of transformers' own loop, whatever ends them, without asking the device in between."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import auto_class
from transformers import CompileConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from quanto_transformers import QuantoConfig, decode_ahead

Saved = Callable[..., Path]


@pytest.fixture
def model(saved: Saved) -> Any:
    return auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig("int8"))


def both(model: Any, ahead: Any = decode_ahead, **options: Any) -> tuple[Any, Any]:
    """The texts of transformers' loop, and of ours."""
    torch.manual_seed(0)
    ids = torch.randint(3, 300, (3, 9))
    options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, **options}
    found = []
    for loop in (None, ahead):
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


def test_what_it_would_drop_is_refused(model: Any) -> None:
    for option, words in (
        ({"num_beams": 2}, "num_beams is 2"),
        ({"prompt_lookup_num_tokens": 3}, "lookup_num_tokens is 3"),
    ):
        with pytest.raises(ValueError, match=words):
            model.generate(torch.ones(1, 4, dtype=torch.long), custom_generate=decode_ahead, max_new_tokens=4, **option)
    early = functools.partial(decode_ahead, early=True)
    with pytest.raises(ValueError, match="compile_config is given"):
        both(model, early, max_new_tokens=4, compile_config=CompileConfig())


@pytest.mark.parametrize("ends", [[-1], list(range(0, 300, 7))])
def test_streams_one_token_late(model: Any, ends: list[int]) -> None:
    class Kept(BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.put_: list[torch.Tensor] = []
            self.ended = 0

        def put(self, value: torch.Tensor) -> None:
            self.put_.append(value)

        def end(self) -> None:
            self.ended += 1

    ids = torch.randint(3, 300, (1, 5))
    options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, "eos_token_id": ends}
    found = []
    for streamer, loop in ((a := Kept(), None), (b := Kept(), functools.partial(decode_ahead, streamer=b))):
        found.append(model.generate(ids, max_new_tokens=9, streamer=streamer, custom_generate=loop, **options))
    assert torch.equal(found[0], found[1])
    assert a.ended == b.ended == 1
    assert [t.flatten().tolist() for t in b.put_] == [t.flatten().tolist() for t in a.put_]


def test_samples_that_end_draw_one_more(model: Any) -> None:
    """The texts are the same; the generator has then moved by one token."""
    ends = list(range(0, 300, 5))
    want, got = both(model, max_new_tokens=30, do_sample=True, eos_token_id=ends)
    assert torch.equal(got, want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("early", [False, True])
def test_compiled_texts_are_the_same(saved: Saved, early: bool) -> None:
    """With CUDA graphs, which are replayed before the host has seen the token."""
    folder = saved("llama", torch.float32)
    model = auto_class("llama").from_pretrained(folder, quantization_config=QuantoConfig("int8"), device_map="cuda")
    ids = torch.randint(3, 300, (2, 9), device="cuda")
    options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, "min_new_tokens": 20}
    options |= {"max_new_tokens": 20, "cache_implementation": "static"}
    want = model.generate(ids, compile_config=CompileConfig(mode="default"), **options)
    for _ in range(3):
        got = model.generate(ids, custom_generate=functools.partial(decode_ahead, early=early), **options)
        assert torch.equal(got, want)
    assert model.config._attn_implementation == "sdpa"
