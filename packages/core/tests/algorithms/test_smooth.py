# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: quantized activations with outliers lose less; what static scales cannot hold gets others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import quanto
from quanto.algorithms import Pipeline, SmoothQuant


def _outliers(tiny: Any) -> Any:
    """Some channels of each norm are large, as those of real models are."""
    model = tiny()
    with torch.no_grad():
        for block in model.blocks:
            block.norm.weight[::16] = 50
    return model


def _error(model: Any, found: Any, batches: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return sum(float((found(b) - model(b)).square().mean()) for b in batches)


def _smoothed(model: Any, step: SmoothQuant, batches: list[torch.Tensor], **scheme: Any) -> Any:
    quanto.quantize(model, "int8", "int8", include="blocks.*", **scheme)
    Pipeline(step).run(model, batches)
    with quanto.Calibration(), torch.no_grad():
        for batch in batches:
            model(batch)
    return model


@pytest.mark.filterwarnings("ignore:calibration met no quantized module")
@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("strength", [None, 0.5])
def test_less_error(dynamic: bool | None, strength: float | None, tiny: Any, batches: list[torch.Tensor]) -> None:
    model = _outliers(tiny)
    plain = _smoothed(_outliers(tiny), SmoothQuant(0.0, least=0), batches, dynamic=dynamic)
    smooth = _smoothed(_outliers(tiny), SmoothQuant(strength, least=0), batches, dynamic=dynamic)
    assert _error(model, smooth, batches) < 0.5 * _error(model, plain, batches)


def test_the_search_is_no_worse_than_any_strength(tiny: Any, batches: list[torch.Tensor]) -> None:
    model = _outliers(tiny)
    errors = [
        _error(model, _smoothed(_outliers(tiny), SmoothQuant(s, least=0), batches, dynamic=True), batches)
        for s in (None, 0.25, 0.5, 0.75)
    ]
    assert errors[0] < 1.1 * min(errors[1:])


def test_scales_are_those_of_the_paper(tiny: Any, batches: list[torch.Tensor]) -> None:
    model, found = _outliers(tiny), _outliers(tiny)
    quanto.quantize(found, "int8", "int8", include="blocks.*", dynamic=True)
    Pipeline(SmoothQuant(0.3)).run(found, batches)
    block, moved = model.blocks[0], found.blocks[0]
    with torch.no_grad():
        peaks = torch.cat([block.norm(model.embed(b)).flatten(0, 1) for b in batches]).abs().amax(0)
    weights = torch.maximum(block.gate.weight.detach().abs().amax(0), block.up.weight.detach().abs().amax(0))
    scale = peaks**0.3 / weights**0.7
    torch.testing.assert_close(moved.norm.weight.detach(), block.norm.weight.detach() / scale, rtol=1e-5, atol=1e-6)
    wanted = block.gate.weight.detach() * scale
    torch.testing.assert_close(moved.gate.weight.dequantize(), wanted, rtol=0, atol=float(wanted.abs().max()) / 200)


def _with_a_sink(tiny: Any) -> Any:
    """Token 0 has activations a thousand times those of all others between `up` and `down`."""
    model = tiny()
    with torch.no_grad():
        model.embed.weight[:, 0] = 0
        model.embed.weight[0] = 0
        model.embed.weight[0, 0] = 20
        block = model.blocks[1]
        block.up.weight[5, 0] = block.gate.weight[5, 0] = 60
        block.up.weight[5, 1:] = block.gate.weight[5, 1:] = 0
    return model


def test_static_scales_only_where_they_hold_the_tokens(tiny: Any, batches: list[torch.Tensor]) -> None:
    batches = [b.clone() for b in batches]
    for batch in batches:
        batch[:, 0] = 0
    model = _with_a_sink(tiny)
    static = _smoothed(_with_a_sink(tiny), SmoothQuant(0.0, least=0), batches)
    found = _smoothed(_with_a_sink(tiny), SmoothQuant(0.0), batches)
    chosen = {
        name: (m.scheme.dynamic, m.input_scale is not None) for name, m in found.named_modules() if "down" in name
    }
    assert chosen["blocks.1.down"] == (True, False)
    assert chosen["blocks.0.down"] == (None, True)
    assert _error(model, found, batches) < 0.5 * _error(model, static, batches)


def test_a_scale_for_each_token_where_one_is_too_coarse(tiny: Any, batches: list[torch.Tensor]) -> None:
    for static, want in ((90.0, True), (0.0, None)):
        found = _smoothed(tiny(), SmoothQuant(static=static), batches)
        assert {block.down.scheme.dynamic for block in found.blocks} == {want}


def test_floating_inputs_where_nothing_else_serves(tiny: Any, batches: list[torch.Tensor]) -> None:
    found = _smoothed(tiny(), SmoothQuant(least=90.0), batches, dynamic=True)
    schemes = {m.scheme.activations for m in found.modules() if isinstance(m, quanto.nn.QModule)}
    assert schemes == {None}
    kept = _smoothed(tiny(), SmoothQuant(least=90.0), batches, dynamic=False)  # as the scheme insists
    assert {m.scheme.dynamic for m in kept.modules() if isinstance(m, quanto.nn.QModule)} == {False}


def test_layers_behind_one_norm_settle_by_their_own_schemes(tiny: Any, batches: list[torch.Tensor]) -> None:
    fixed, free, none = (
        quanto.Scheme("int8", a, dynamic=d) for a, d in [("int8", False), ("int8", True), (None, None)]
    )
    for gate, up, want in [(fixed, free, ["int8", None]), (free, fixed, [None, "int8"]), (none, free, [None, None])]:
        model = quanto.quantize(tiny(), "int8", include="blocks.*", rules={"*.gate": gate, "*.up": up})
        Pipeline(SmoothQuant(least=90.0)).run(model, batches)
        block = model.blocks[0]
        assert [block.gate.scheme.activations, block.up.scheme.activations] == want
        assert all(m.scheme.dynamic is False for m in (block.gate, block.up) if m.scheme.activations)


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got -1"):
        SmoothQuant(-1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        SmoothQuant(steps=0)
    with pytest.raises(ValueError, match="least must not be negative, got -3"):
        SmoothQuant(least=-3)
    with pytest.raises(ValueError, match="static must not be negative, got -1"):
        SmoothQuant(static=-1)
