# SPDX-License-Identifier: Apache-2.0
"""Linear layers on int8 activations against float64, and the nonlinearities in the same pass."""

from __future__ import annotations

import pytest
import torch
from accuracy import EXACT, activations, worst
from weights import sample

from quanto import reference
from quanto.nonlinearity import NONLINEARITIES
from quanto_backend_cpu.specs import EVERY, INTEGERS

OPS = torch.ops.quanto_cpu


@pytest.mark.parametrize("qtype", sorted(EVERY - {"mxfp4", "mxfp8", "nvfp4"}))
def test_int8_activations(qtype: str, isa: str) -> None:
    for group, shape in ((None, (33, 576)), (32, (7, 129)), (None, (16, 2049))):
        w = sample(qtype, shape, group, "int" if qtype in INTEGERS else "none")
        x, bias = activations(9, shape[1]), activations(1, shape[0], 3)[0]
        codes, scale = reference.dynamic_quantize(x, "int8", torch.float32)
        values = codes.double() * scale.double()
        call = [*w.panels, bias, "int8", qtype, list(w.blocks)]
        y = OPS.scaled_linear_panels(codes, scale, *call, None, torch.float32)
        assert worst(y, values, w, bias) < EXACT
        static = torch.tensor(0.03)
        y = OPS.scaled_linear_panels(codes, static, *call, None, torch.float32)
        assert worst(y, codes.double() * 0.03, w, bias) < EXACT
        out_scale = (y.abs().max() / 100).float()
        again = OPS.scaled_linear_panels(codes, static, *call, out_scale, torch.float32)
        assert again.dtype == torch.int8
        apart = (again.int() - (y / out_scale).round().clamp(-128, 127).int()).abs()
        assert apart.max() <= 1
        assert (apart > 0).float().mean() < 0.02  # ties


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nonlinearities(name: str, dtype: torch.dtype, isa: str) -> None:
    """Over all that a float tells apart, in whole panels and in rows that are left; NaN and infinity as in torch."""
    ends = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 89.0, -89.0, 1e-30, -1e30, 3e38])
    bias = torch.cat([ends, torch.linspace(-15, 15, 1013)])
    w = sample("int8", (bias.numel(), 32))
    codes = torch.zeros(3, 32, dtype=torch.int8)
    for rows in (bias.numel(), 37):
        tensors = (w.canonical[0][:rows], w.canonical[1][:rows], None, None)
        call = [codes, torch.ones(3, 1), *tensors, bias[:rows], "int8", "int8", [1, 32], None, dtype, name]
        want = NONLINEARITIES[name](bias[:rows].double()).expand(3, -1)
        y = OPS.scaled_linear(*call)
        assert y.dtype == dtype
        rtol = 2e-5 if dtype == torch.float32 else 8e-3
        torch.testing.assert_close(y, want.to(dtype), rtol=rtol, atol=3e-7, equal_nan=True)
        call[-3] = torch.tensor(0.1)
        steps = (want / 0.1).nan_to_num(0.0).clamp(-128, 127)
        assert ((OPS.scaled_linear(*call).double() - steps).abs() <= 0.5001).all()


def test_an_unknown_nonlinearity_is_named() -> None:
    w = sample("int8", (16, 32))
    call = [torch.zeros(1, 32, dtype=torch.int8), torch.ones(1, 1), *w.panels, None, "int8", "int8", [1, 32], None]
    with pytest.raises(RuntimeError, match=r"nonlinearity must be one of relu, .* got tanh"):
        OPS.scaled_linear_panels(*call, torch.float32, "tanh")
