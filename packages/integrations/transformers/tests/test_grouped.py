# SPDX-License-Identifier: Apache-2.0
"""Attention of one token without copies of keys and values: what sdpa computes, and only where it is used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import build
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from quanto_transformers import grouped

LAYER = SimpleNamespace(num_key_value_groups=4, is_causal=True)


def problem(tokens: int, dtype: torch.dtype, heads: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((2, heads, tokens, 16), (2, 2, 37, 16), (2, 2, 37, 24))
    return [torch.randn(*shape).to(dtype) for shape in shapes]


def compiled(*given: Any, **options: Any) -> torch.Tensor:
    """As traced by torch.compile, which the function asks for; run without a compiler."""
    torch._dynamo.reset()
    call = torch.compile(lambda *g: grouped.attention(LAYER, *g, **options)[0], backend="eager", fullgraph=True)
    return call(*given)


@pytest.mark.parametrize("kind", ["none", "seen", "added", "heads"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_one_token_sees_what_sdpa_sees(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    q, k, v = problem(1, dtype)
    seen = torch.rand(2, 8 if kind == "heads" else 1, 1, 37) > 0.4
    mask = {"none": None, "added": torch.randn(2, 1, 1, 37).to(dtype)}.get(kind, seen)
    want = sdpa_attention_forward(LAYER, q, k, v, mask, scaling=0.3)[0].double()
    got = compiled(q, k, v, mask, scaling=0.3)
    assert got.dtype == dtype
    assert got.shape == want.shape == (2, 1, 8, 24)
    assert ((got.double() - want).abs() <= tolerance * want.abs().max()).all()


def test_the_default_scale_is_that_of_sdpa() -> None:
    q, k, v = problem(1, torch.float32)
    want = sdpa_attention_forward(LAYER, q, k, v, None)[0]
    assert ((compiled(q, k, v, None) - want).abs() <= 1e-5 * want.abs().max()).all()


@pytest.mark.parametrize("tokens", [1, 3])
def test_all_else_is_left_to_sdpa(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import sdpa_attention

    q, k, v = problem(tokens, torch.float32)
    calls = []
    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", lambda *a, **_: calls.append(a) or (a[1], None))
    grouped.attention(LAYER, q, k, v, None, is_causal=True)
    assert len(calls) == 1, "eager, which would keep all products"


def test_models_use_it_within_the_block_alone() -> None:
    model = build("llama", torch.float32)
    ids = torch.randint(3, 300, (1, 9))
    want = model(ids).logits
    with grouped.grouped(model):
        assert model.model.config._attn_implementation == grouped.NAME
        assert torch.equal(model(ids).logits, want), "a prompt is left to sdpa"
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with grouped.grouped(model):
        assert model.config._attn_implementation == "eager"


def test_a_backend_does_it_in_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "quanto_tests::attend"

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        found = sdpa_attention_forward(LAYER, query, key, value, mask, scaling=scale)[0]
        return found.contiguous() + 1

    schema = "(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor"
    operator = torch.library.custom_op(name, attend, mutates_args=(), schema=schema)
    operator.register_fake(lambda query, *_: query.new_empty(query.shape[0], 1, query.shape[1], query.shape[3]))
    monkeypatch.setattr(grouped.kernels, "function", lambda *_: torch.ops.quanto_tests.attend.default)
    q, k, _ = problem(1, torch.bfloat16)
    seen = torch.rand(2, 1, 1, 37) > 0.4
    want = sdpa_attention_forward(LAYER, q, k, k, seen, scaling=0.3)[0] + 1
    assert torch.equal(compiled(q, k, k, seen, scaling=0.3), want)
    q, k, v = problem(1, torch.bfloat16)  # values of another width are not for it
    assert (compiled(q, k, v, seen, scaling=0.3) < want.amax()).any()
    q, k, _ = problem(1, torch.float32)
    assert torch.isclose(compiled(q, k, k, None), sdpa_attention_forward(LAYER, q, k, k, None)[0], atol=1e-4).all()
