# SPDX-License-Identifier: Apache-2.0
"""One Hessian for each part of the rows is the same as each part alone."""

from __future__ import annotations

import pytest
import torch

import quanto
from quanto.algorithms.columns import round_columns
from quanto.algorithms.descend import descend
from quanto.algorithms.hessian import each_row, solve, times
from quanto.algorithms.refine import refine
from quanto.quantizers import Parameters, Target, fit


@pytest.mark.parametrize("zero", [None, torch.float16])
def test_parts_of_the_rows(zero: torch.dtype | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, 12, generator=generator) @ torch.randn(3, 12, 12, generator=generator)
    weight, hessian = torch.randn(6, 12, generator=generator), x.mT @ x / 40 + 0.1 * torch.eye(12)
    target = Target(quanto.qint4, (1, 4), torch.float32, zero is None, zero or torch.int8)
    p = fit(weight, target)

    def run(rows: torch.Tensor, h: torch.Tensor, p: Parameters) -> tuple[torch.Tensor, ...]:
        elements, _ = round_columns(rows, h, target, p)
        elements, floats = descend(rows, elements, h, target, p)
        p = refine(rows, elements, h, target, p)
        return elements, floats, p.scale, times(rows, h), solve(rows, torch.linalg.cholesky(h))

    whole = run(weight, hessian, p)
    for i in range(3):
        part = slice(2 * i, 2 * i + 2)
        alone = run(weight[part], hessian[i], Parameters(*(None if t is None else t[part] for t in p)))
        for found, wanted in zip(whole, alone, strict=True):
            torch.testing.assert_close(found[part], wanted, rtol=1e-4, atol=1e-4)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    assert torch.equal(each_row(diagonal, 6)[2:4], diagonal[1].expand(2, -1))
    assert torch.equal(each_row(diagonal[0], 6), diagonal[0].expand(6, -1))
