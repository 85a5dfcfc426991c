# SPDX-License-Identifier: Apache-2.0
"""Columns against a plain definition."""

from __future__ import annotations

import pytest
import torch

import quanto
from quanto.algorithms.columns import round_columns
from quanto.quantizers import Target, fit
from quanto.quantizers.grid import nearest


def _correlated(tokens: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width // 4, width, generator=generator)
    return torch.randn(tokens, width // 4, generator=generator) @ mix + 0.1 * torch.randn(
        tokens, width, generator=generator
    )


def _plain(weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, q: quanto.QType) -> torch.Tensor:
    """Optimal brain quantization in fixed order: the inverse Hessian of what remains is computed anew per column."""
    weight, out = weight.double().clone(), torch.zeros_like(weight)
    hessian = hessian.double()
    for i in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[i:, i:])
        column = weight[:, i].clone()
        out[:, i] = nearest(column.float() / scale[:, 0], q)
        error = (column - out[:, i].double() * scale[:, 0].double()) / inverse[0, 0]
        weight[:, i:] -= error[:, None] * inverse[0]
    return out


def test_columns_equal_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _correlated(200, 24)
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    hessian = x.T @ x / 200 + 0.01 * torch.eye(24)
    target = Target(quanto.qint4, (1, 24), torch.float32)
    parameters = fit(weight, target)
    expected = _plain(weight, hessian, parameters.scale, quanto.qint4)
    for columns in (5, 128):  # lazy batches must not show
        monkeypatch.setattr("quanto.algorithms.columns._COLUMNS", columns)
        found, _ = round_columns(weight, hessian, target, parameters, act_order=False)
        assert (found != expected).sum() <= 1  # a value in the middle of two codes
