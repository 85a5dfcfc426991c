# SPDX-License-Identifier: Apache-2.0
"""`QMultiheadAttention` does with masks and shapes what torch's module does, on the quantized projections."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import quanto

G = torch.Generator().manual_seed(0)
T, S, N, E = 5, 7, 2, 32
PADDING = torch.tensor([[False] * S, [False] * (S - 3) + [True] * 3])
CAUSAL = torch.triu(torch.ones(T, S, dtype=torch.bool), diagonal=S - T + 1)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "without bias": ({"bias": False}, {}),
    "without weights": ({}, {"need_weights": False}),
    "weights of each head": ({}, {"average_attn_weights": False}),
    "boolean padding": ({}, {"key_padding_mask": PADDING}),
    "additive padding": ({}, {"key_padding_mask": torch.where(PADDING, -5.0, 0.0)}),
    "boolean mask": ({}, {"attn_mask": CAUSAL}),
    "additive mask": ({}, {"attn_mask": torch.randn(T, S, generator=G)}),
    "mask per head": ({}, {"attn_mask": torch.randn(N * 4, T, S, generator=G)}),
    "both masks": ({}, {"attn_mask": CAUSAL, "key_padding_mask": PADDING, "need_weights": False}),
    "bias of keys and values": ({"add_bias_kv": True}, {}),
    "attention to zero": ({"add_zero_attn": True}, {"key_padding_mask": PADDING}),
    "unlike widths": ({"kdim": 16, "vdim": 24}, {"key_padding_mask": PADDING}),
}


def _inputs(options: dict[str, Any], batch_first: bool) -> list[torch.Tensor]:
    widths = (E, options.get("kdim", E), options.get("vdim", E))
    made = [torch.randn(n, N, w, generator=G) for n, w in zip((T, S, S), widths, strict=True)]
    return [t.transpose(0, 1) for t in made] if batch_first else made


def _pair(options: dict[str, Any]) -> tuple[Any, Any]:
    """A quantized module and the float module that has its values."""
    torch.manual_seed(0)
    module = quanto.freeze(quanto.quantize(nn.MultiheadAttention(E, 4, **options).eval(), "int4", group_size=16))
    return module, quanto.dequantize(copy.deepcopy(module))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_as_the_float_module(name: str, batch_first: bool) -> None:
    options, call = CASES[name]
    module, plain = _pair({**options, "batch_first": batch_first})
    inputs = _inputs(options, batch_first)
    out, weights = module(*inputs, **call)
    want, want_weights = plain(*inputs, **call)
    torch.testing.assert_close(out, want, atol=2e-6, rtol=1e-5)
    assert (weights is None) == (want_weights is None)
    if weights is not None:
        torch.testing.assert_close(weights, want_weights, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
def test_without_a_batch(batch_first: bool) -> None:
    module, plain = _pair({"batch_first": batch_first})
    query, other = torch.randn(T, E, generator=G), torch.randn(S, E, generator=G)
    out, weights = module(query, other, other)
    want, want_weights = plain(query, other, other)
    assert out.shape == (T, E)
    torch.testing.assert_close(out, want, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(weights, want_weights, atol=2e-6, rtol=1e-5)


def test_causal_hint() -> None:
    module, plain = _pair({})
    x = torch.randn(T, N, E, generator=G)
    mask = torch.triu(torch.ones(T, T, dtype=torch.bool), diagonal=1)
    for call in ({"need_weights": False}, {}):
        out, _ = module(x, x, x, attn_mask=mask, is_causal=True, **call)
        torch.testing.assert_close(out, plain(x, x, x, attn_mask=mask)[0], atol=2e-6, rtol=1e-5)


def test_the_output_projection_may_stay_floating() -> None:
    torch.manual_seed(0)
    module = quanto.quantize(nn.MultiheadAttention(E, 4).eval(), "int8", exclude="out_proj")
    assert not isinstance(module.out_proj, quanto.nn.QModule)
    x = torch.randn(T, N, E, generator=G)
    trainable = module(x, x, x)[0]
    quanto.freeze(module)
    torch.testing.assert_close(module(x, x, x)[0], trainable, atol=2e-6, rtol=1e-5)
    plain = quanto.dequantize(copy.deepcopy(module))
    torch.testing.assert_close(module(x, x, x)[0], plain(x, x, x)[0], atol=2e-6, rtol=1e-5)


def test_other_dtypes() -> None:
    module, plain = _pair({"batch_first": True})
    x = torch.randn(N, T, E, generator=G).bfloat16()
    out, _ = module.bfloat16()(x, x, x, key_padding_mask=PADDING[:, -T:])
    assert out.dtype == torch.bfloat16
    want = plain.bfloat16()(x, x, x, key_padding_mask=PADDING[:, -T:])[0]
    torch.testing.assert_close(out, want, atol=2e-2, rtol=2e-2)


def test_dropout_in_training_only() -> None:
    module, _ = _pair({"dropout": 0.5})
    x = torch.randn(T, N, E, generator=G)
    assert torch.equal(module(x, x, x)[0], module(x, x, x)[0])
    module.train()
    assert not torch.equal(module(x, x, x)[0], module(x, x, x)[0])


def test_activations_stay_floating() -> None:
    torch.manual_seed(0)
    module = quanto.quantize(nn.MultiheadAttention(E, 4).eval(), "int8", "int8")
    x = torch.randn(T, N, E, generator=G)
    with quanto.Calibration():
        module(x, x, x)
    assert module.input_scale is None
    assert module.output_scale is None
