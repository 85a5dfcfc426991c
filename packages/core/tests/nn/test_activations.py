# SPDX-License-Identifier: Apache-2.0
"""Rounding on the way, with a gradient that passes straight through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quanto
from quanto.nn.activations import absmax_scale, fake_quantize_activation, fake_quantize_weight
from quanto.nn.slot import Slot

G = torch.Generator().manual_seed(0)


def test_absmax_scale() -> None:
    assert absmax_scale(torch.tensor([[1.0, -255.0]], dtype=torch.float16), "int8").item() == 2.0
    assert absmax_scale(torch.tensor([-448.0]), "float8_e4m3fn").item() == 1.0
    assert absmax_scale(torch.zeros(3, 4), "int8").item() == 1.0
    assert absmax_scale(torch.zeros(0, 4), "int8").item() == 1.0
    assert absmax_scale(torch.tensor([1.0, float("nan")]), "int8").isnan()
    made = absmax_scale(torch.ones(2, dtype=torch.bfloat16, requires_grad=True), "int8")
    assert (made.dtype, tuple(made.shape), made.requires_grad) == (torch.float32, (), False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("scale", "per_sample", "groups"),
    [(torch.tensor(0.02), False, 1), (None, False, 24), (None, True, 4)],
    ids=["static", "per token", "per sample"],
)
def test_activations_are_rounded_to_their_grid(
    dtype: torch.dtype, scale: torch.Tensor | None, per_sample: bool, groups: int
) -> None:
    x = (torch.randn(4, 6, 10, generator=G) * torch.logspace(-1, 1, 4).view(4, 1, 1)).to(dtype)
    y = fake_quantize_activation(x, "int8", scale, per_sample)
    assert y.dtype == dtype
    rows, rounded = x.float().reshape(groups, -1), y.float().reshape(groups, -1)
    steps = torch.full((groups, 1), 0.02) if scale is not None else rows.abs().amax(1, keepdim=True) / 127.5
    inside = rows.clamp(-128 * steps, 127 * steps)
    rounding = 0 if dtype == torch.float32 else rows.abs() * 2**-8
    assert ((rounded - inside).abs() <= steps / 2 * 1.0001 + rounding).all()
    assert torch.equal(fake_quantize_activation(torch.zeros(2, 3), "int8", scale, per_sample), torch.zeros(2, 3))


def test_the_gradient_passes_straight_through() -> None:
    x = torch.randn(3, 8, generator=G, requires_grad=True)
    upstream = torch.randn(3, 8, generator=G)
    fake_quantize_activation(x, "float8_e4m3fn", None).backward(upstream)
    assert torch.equal(x.grad, upstream)  # type: ignore[arg-type]


@pytest.mark.parametrize("arrangement", ["rows", "transposed"])
@pytest.mark.parametrize("qtype", sorted(quanto.qtypes))
def test_weights_have_the_values_of_their_frozen_twin(qtype: str, arrangement: str) -> None:
    w = torch.randn(64, 64, generator=G, requires_grad=True)
    slot = Slot(quanto.Scheme(qtype), (64, 64), torch.float32, arrangement)
    values = fake_quantize_weight(w, slot)
    frozen = slot.present(quanto.quantize_tensor(slot.rows(w.detach()), qtype))
    assert torch.equal(values, frozen.dequantize())
    assert not torch.equal(values, w)
    upstream = torch.randn(64, 64, generator=G)
    values.backward(upstream)
    assert torch.equal(w.grad, upstream)  # type: ignore[arg-type]


def test_weights_on_meta() -> None:
    slot = Slot(quanto.Scheme("int4"), (16, 128), torch.float32)
    assert fake_quantize_weight(torch.empty(16, 128, device="meta"), slot).is_meta


@pytest.mark.parametrize(
    ("weights", "activations", "tolerance"),
    [("int8", None, 1e-5), ("int4", None, 1e-5), ("float8", None, 1e-5), ("nf4", None, 1e-5), ("int4", "int8", 0.03)],
)
def test_training_on_rounded_weights(weights: str, activations: str | None, tolerance: float) -> None:
    """The loss falls, and freezing keeps what was trained: codes give the values that were simulated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 32), nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 20))
    quanto.quantize(model, weights, activations, include=["*", "0"])
    tokens, targets = (torch.randint(0, 20, (24,), generator=G) for _ in range(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(tokens), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    simulated = model(tokens)
    frozen = quanto.freeze(model)(tokens)
    assert (frozen - simulated).abs().max() <= tolerance * simulated.abs().max()
    assert nn.functional.cross_entropy(frozen, targets) < 0.5 * losses[0]
