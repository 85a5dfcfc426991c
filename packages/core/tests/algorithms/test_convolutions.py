# SPDX-License-Identifier: Apache-2.0
"""Convolutions as linear layers of their windows, and GPTQ on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms import Block, Pipeline
from quanto.algorithms.convolutions import convolution_layers, rows_of
from quanto.algorithms.statistics import input_groups, moments
from quanto.algorithms.stream import Stream

CASES: list[tuple[type[nn.Module], tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv1d, (4, 6, 3), {"padding": 1, "stride": 2}, (2, 4, 11)),
    (nn.Conv2d, (4, 6, (3, 2)), {"padding": (1, 0), "dilation": (1, 2), "groups": 2}, (3, 4, 7, 9)),
    (nn.Conv2d, (4, 8, 3), {"padding": "same", "padding_mode": "reflect", "groups": 4}, (2, 4, 6, 5)),
    (nn.Conv2d, (4, 6, 1), {}, (4, 6, 5)),  # no batch
    (nn.Conv3d, (2, 4, 2), {"padding": "valid"}, (2, 2, 4, 3, 5)),
]


@pytest.mark.parametrize(("kind", "sizes", "options", "shape"), CASES)
def test_windows_times_rows_are_the_convolution(
    kind: type[nn.Module], sizes: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer: Any = kind(*sizes, bias=False, **options)
    x = torch.randn(shape)
    wanted = layer(x)
    examples = wanted if x.ndim == layer.weight.ndim else wanted[None]
    weight = layer.weight.detach().flatten(1).unflatten(0, (layer.groups, -1))
    parts = list(rows_of(layer, x))
    assert len(parts) == len(examples)
    for rows, example in zip(parts, examples, strict=True):
        rows = rows if rows.ndim == 3 else rows[None]
        found = (rows @ weight.mT).permute(0, 2, 1).reshape(example.shape)  # [groups, out, places]
        torch.testing.assert_close(found, example, rtol=1e-5, atol=1e-5)


class _Mobile(nn.Module):
    """Expand, convolve each channel, project; inputs are never negative, as behind a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(8, 24, 1, bias=False)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.project = nn.Conv2d(24, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depthwise(self.expand(x).relu()).relu())
        return x + y


def _samples() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(8, 3, generator=generator)
    noise = torch.rand(4, 3, 9, 9, generator=generator)
    return list(torch.einsum("cd,ndhw->nchw", mix, noise).relu().add(0.2).split(2))


@pytest.mark.parametrize(
    "options",
    [{"weights": "int8"}, {"weights": "int4", "granularity": "channel"}, {"weights": "int4", "group_size": 4}],
)
def test_less_error_than_nearest(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, samples = nn.Sequential(_Mobile(), _Mobile()).eval(), _samples()
    nearest, found = (quanto.quantized(model, **options) for _ in range(2))
    quanto.freeze(nearest)
    Pipeline("gptq").run(found, samples)
    with torch.no_grad():
        error, least = (sum(float((m(x) - model(x)).square().mean()) for x in samples) for m in (found, nearest))
    assert all(m.frozen for m in found.modules() if isinstance(m, quanto.nn.QModule))
    assert error < 0.5 * least


def test_order_groups_and_idle_channels() -> None:
    model = quanto.quantize(nn.Sequential(_Mobile(), nn.ConvTranspose2d(8, 8, 2)), "int8")
    samples = _samples()
    with torch.no_grad():
        model[0].expand.weight[5] = 0  # a channel whose second moments are zero
    inputs = Stream(samples, [((), {})] * len(samples))
    block = Block("", model, inputs, inputs)
    found = convolution_layers(block)
    assert input_groups(block, found) == [["0.expand"], ["0.depthwise"], ["0.project"]]
    assert block.skipped == ["1: a transposed convolution is rounded by its scheme's algorithm"]
    hessian = moments(block, "0.depthwise").hessian
    assert hessian is not None
    assert hessian.shape == (24, 9, 9)
    assert not hessian[5].any()
    Pipeline("gptq").run(model, samples)
    assert all(model(x).isfinite().all() for x in samples)
