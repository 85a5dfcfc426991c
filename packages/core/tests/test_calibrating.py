# SPDX-License-Identifier: Apache-2.0
"""Static scales are what was measured, hand-overs stay where they gain, and an error leaves no trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto import QTensor
from quanto.kernels.codes import compare_codes

G = torch.Generator().manual_seed(0)
X = torch.randn(64, 32, generator=G)
HOOKS = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)


def _model(*layers: nn.Module, weights: str = "int8", activations: str = "int8", **options: Any) -> Any:
    torch.manual_seed(0)
    if not layers:
        layers = (nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))
    return quanto.quantize(nn.Sequential(*layers).eval(), weights, activations, **options)


def _calibrated(model: Any, batches: int = 4, **options: Any) -> quanto.Calibration:
    with quanto.Calibration(**options) as calibration, torch.no_grad():
        for batch in X.chunk(batches):
            model(batch)
    return calibration


def _handed(model: nn.Module, x: torch.Tensor = X) -> list[type]:
    """The types of what linear layers and norms are given."""
    seen: list[type] = []
    handles = [
        m.register_forward_pre_hook(lambda module, args: seen.append(type(args[0])))
        for m in model.modules()
        if isinstance(m, quanto.nn.QModule)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


# -- scales ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_averages_inputs_and_outputs(momentum: float, grad: bool, frozen: bool) -> None:
    layer = nn.Linear(4, 4, bias=False)
    nn.init.eye_(layer.weight)
    model = _model(layer, nn.ReLU(), nn.Linear(4, 4))
    if frozen:
        quanto.freeze(model)
    with quanto.Calibration(momentum=momentum), torch.set_grad_enabled(grad):
        for peak in (1.0, 10.0, 4.0):
            model(torch.tensor([[peak, 0.0, 0.0, -0.5]]))
    inputs = outputs = 1.0
    for peak in (10.0, 4.0):
        inputs = momentum * inputs + (1 - momentum) * peak
        outputs = momentum * outputs + (1 - momentum) * min(peak, inputs)  # the input's scale of then clips it
    torch.testing.assert_close(model[0].input_scale, torch.tensor(inputs / 127.5), rtol=1e-6, atol=0)
    torch.testing.assert_close(model[0].output_scale, torch.tensor(outputs / 127.5), rtol=0.01, atol=0)
    assert torch.equal(model[2].input_scale, model[0].output_scale)


def test_calibrating_again_goes_on() -> None:
    model = _model()
    _calibrated(model)
    first = model[0].output_scale.clone()
    with quanto.Calibration(momentum=0.0):
        model(10 * X)
    assert model[0].output_scale > 5 * first, "what a scale clips is not hidden from the next calibration"
    assert torch.equal(model[2].input_scale, model[0].output_scale)


def test_as_the_first_release_wrote_it() -> None:
    from quanto import calibration, freeze, quantize

    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))
    quantize(model, weights=torch.int8, activations=torch.int8)
    with calibration(momentum=0.9):
        model(X)
    freeze(model)
    assert "int8 x int8 dynamic, calibrated, frozen" in repr(model[0])
    assert model[0].input_scale == X.abs().max() / quanto.qint8.amax


def test_inputs_given_by_keyword_are_measured() -> None:
    layer, again = _model(nn.Linear(32, 8)), _model(nn.Linear(32, 8))
    with quanto.Calibration(), torch.no_grad():
        for batch in X.chunk(4):
            layer[0](batch)
            again[0](input=batch)
    assert torch.equal(again[0].input_scale, layer[0].input_scale)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2, "a"])
def test_momentum_is_checked(momentum: Any) -> None:
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got"):
        quanto.Calibration(momentum=momentum)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    model = _model()
    bad = X.clone()
    bad[3, 5] = value
    with (
        pytest.raises(ValueError, match="calibration met NaN or infinity in the input of QLinear"),
        quanto.Calibration(),
    ):
        model(bad)
    with torch.no_grad():
        model[2].bias[0] = value
    with pytest.raises(ValueError, match="NaN or infinity in the output of QLinear"), quanto.Calibration():
        model(X)


def test_empty_batches_and_integers_are_passed_over() -> None:
    model = _model()
    with quanto.Calibration():
        model(X[:0])
    assert model[0].input_scale is None
    assert model[0].output_scale is None


@pytest.mark.filterwarnings("ignore:calibration met no quantized module")
def test_layers_that_are_always_dynamic_are_skipped() -> None:
    model = _model(dynamic=True)
    calibration = _calibrated(model)
    assert calibration.kept == 0
    assert not calibration.removed
    assert all(m.input_scale is None and m.output_scale is None for m in (model[0], model[2]))
    weight_only = quanto.quantize(nn.Sequential(nn.Linear(32, 8)), "int8")
    _calibrated(weight_only)
    assert weight_only[0].input_scale is None  # type: ignore[index]


# -- hand-overs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("activations", ["int8", "float8"])
@pytest.mark.parametrize("middle", [nn.ReLU, nn.Identity, nn.Dropout])
def test_a_hand_over_equals_the_computation_without_it(
    middle: Callable[[], nn.Module], activations: str, frozen: bool
) -> None:
    model = _model(nn.Linear(32, 48), middle(), nn.Linear(48, 16), activations=activations)
    calibration = _calibrated(model)
    assert (calibration.kept, calibration.removed) == (1, Counter({"QLinear": 1}))
    assert model[2].output_scale is None, "the last output is for people"
    if frozen:
        quanto.freeze(model)
    assert _handed(model) == [torch.Tensor, QTensor]
    with torch.no_grad():
        handed, codes = model(X), model[1](model[0](X))
        scale, model[0].output_scale = model[0].output_scale, None
        plain, floats = model(X), model[1](model[0](X))
    want = quanto.quantize_activation(floats, activations, scale)
    assert compare_codes(codes.codes, want.codes, want.qtype, 48) is None, "one step at most, in ties"
    largest_step = scale * (1 if activations == "int8" else 32)
    one_step = model[2].effective().abs().sum(1) * largest_step
    assert type(handed) is torch.Tensor
    assert ((handed - plain).abs() <= one_step + 1e-5).all()
    assert (handed - plain).abs().mean() < 1e-4 * plain.abs().mean(), "hardly any code differs"


@pytest.mark.parametrize(
    ("layers", "kept", "removed"),
    [
        ([nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 8)], 2, {"QLinear": 1}),
        ([nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8)], 0, {"QLinear": 2}),
        ([nn.Linear(32, 32), nn.Softmax(-1)], 0, {"QLinear": 1}),
        ([nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 8)], 1, {"QLinear": 2}),
        ([nn.RMSNorm(32), nn.Linear(32, 8)], 1, {"QLinear": 1}),
        ([nn.RMSNorm(32), nn.Tanh()], 0, {"QRMSNorm": 1}),
        ([nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.Flatten(), nn.Linear(32, 8)], 2, {"QLinear": 1}),
    ],
)
def test_hand_overs_that_gain_stay(layers: list[nn.Module], kept: int, removed: dict[str, int]) -> None:
    model = _model(*layers)
    calibration = _calibrated(model)
    assert (calibration.kept, dict(calibration.removed)) == (kept, removed)
    assert sum(getattr(m, "output_scale", None) is not None for m in model.modules()) == kept


def test_a_hand_over_that_somebody_else_needs_in_float_is_removed() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            return y + self.two(y)

    model: Any = _model(Residual())
    calibration = _calibrated(model)
    assert (calibration.kept, dict(calibration.removed)) == (0, {"QLinear": 2})
    assert model[0].one.output_scale is None


def test_unlike_neighbours_hand_over_floats() -> None:
    model = _model(nn.Linear(32, 32), nn.Linear(32, 32), weights="int8")
    quanto.quantize(model, "int8", "float8", include="1")
    calibration = _calibrated(model)
    assert (calibration.kept, dict(calibration.removed)) == (0, {"QLinear": 2})
    torch.testing.assert_close(model[1].input_scale * 448, model[0](X).abs().amax(), rtol=0.3, atol=0)


def test_without_streamlining_every_output_is_quantized() -> None:
    model = _model(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8))
    calibration = _calibrated(model, streamline=False)
    assert calibration.kept == 0
    assert not calibration.removed
    assert model[0].output_scale is not None
    with torch.no_grad():
        assert isinstance(model(X), QTensor)


def test_what_was_removed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "quanto"):
        _calibrated(_model())
    assert "calibration: 1 quantized hand-overs kept, removed as gaining nothing: 1 QLinear" in caplog.text


# -- what is left behind -----------------------------------------------------------------------------------------------


def _clean() -> bool:
    return QTensor.on_dequantize is None and not any(HOOKS)


def test_an_error_leaves_no_hook_and_keeps_what_was_measured() -> None:
    model = _model()
    _calibrated(model)
    output = model[0].output_scale.clone()
    inputs = model[0].input_scale.clone()
    assert _clean()

    def fails(module: nn.Module, args: Any) -> None:
        raise ZeroDivisionError

    handle = model[0].register_forward_pre_hook(fails)
    with pytest.raises(ZeroDivisionError), quanto.Calibration():
        model(X * 2)
    handle.remove()
    assert _clean()
    assert torch.equal(model[0].output_scale, output), "it was hidden while the layer ran"
    assert model[0].input_scale > inputs
    assert _handed(model) == [torch.Tensor, QTensor], "nothing was removed, for nothing was finished"


def test_a_running_calibration_is_not_entered_again() -> None:
    calibration = quanto.Calibration()
    model = _model()
    with calibration:
        model(X)
        with pytest.raises(RuntimeError, match="running already"), calibration:
            pass
    assert _clean(), "hooks that are forgotten would measure every model from then on"
    with calibration:
        model(X)
    assert calibration.kept == 2, "once for each time"


def test_calibrations_may_end_in_any_order() -> None:
    first, second = quanto.Calibration(), quanto.Calibration()
    model = _model()
    first.__enter__()
    second.__enter__()
    model(X)
    first.__exit__(None, None, None)
    model(X)
    second.__exit__(None, None, None)
    assert _clean()


def test_a_calibration_that_meets_nothing_says_so() -> None:
    with pytest.warns(UserWarning, match="calibration met no quantized module"), quanto.Calibration():
        nn.Linear(4, 4)(torch.ones(1, 4))
    with pytest.raises(ZeroDivisionError), quanto.Calibration():
        raise ZeroDivisionError


def test_calibrations_nest() -> None:
    inner, outer = _model(), _model()
    with quanto.Calibration() as first:
        outer(X)
        with quanto.Calibration() as second:
            inner(X)
        outer(X)
    assert _clean()
    assert (first.kept, second.kept) == (2, 1), "the outer one sees both models"
    assert _handed(outer) == [torch.Tensor, QTensor]


def test_scales_are_saved_with_the_model(tmp_path: Path) -> None:
    model = _model(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8), scheme=None, dynamic=False)
    _calibrated(model)
    quanto.freeze(model)
    with torch.no_grad():
        expected = model(X)
    scales = {n: t for n, t in model.state_dict().items() if n.endswith(("input_scale", "output_scale"))}
    assert set(scales) == {"0.output_scale", "1.input_scale", "1.output_scale", "3.input_scale"}
    quanto.save(model, tmp_path)
    fresh = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    again = quanto.load(tmp_path, fresh)
    assert _handed(again) == [torch.Tensor, QTensor, QTensor]
    with torch.no_grad():
        assert torch.equal(again(X), expected)
    back = quanto.dequantize(again)
    assert not list(back.named_buffers())
