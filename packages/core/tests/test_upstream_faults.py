# SPDX-License-Identifier: Apache-2.0
"""What optimum-quanto gets wrong, one test each: the reasons this project exists."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import quanto
from quanto.quantizers import Quantizer

QTYPES = sorted(quanto.qtypes)


def _layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def _frozen(weights: str = "int4", activations: str | None = None) -> nn.Module:
    return quanto.freeze(quanto.quantize(_layers(), weights, activations))


X = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("qtype", QTYPES)
def test_models_are_copied_pickled_and_shared(qtype: str) -> None:
    model = _frozen(qtype)
    expected = model(X)
    assert torch.equal(copy.deepcopy(model)(X), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert all(torch.equal(state[n].view(-1), t.view(-1)) for n, t in model.state_dict().items())
    assert torch.equal(model.share_memory()(X), expected)
    assert model[0].weight_packed.is_shared()


@pytest.mark.parametrize("qtype", QTYPES)
def test_tensors_are_copied_cloned_pickled_and_shared(qtype: str) -> None:
    q = quanto.quantize_tensor(torch.randn(16, 96), qtype)
    for twin in (copy.deepcopy(q), q.clone(), pickle.loads(pickle.dumps(q)), q.detach()):
        assert isinstance(twin, quanto.QTensor)
        assert torch.equal(twin, q)
        assert torch.equal(twin.dequantize(), q.dequantize())
    assert q.clone().share_memory_().is_shared()


@pytest.mark.parametrize("qtype", QTYPES)
def test_dtype_changes_keep_codes_and_scales(qtype: str) -> None:
    model = _frozen(qtype)
    before = {n: t.clone() for n, t in model.state_dict().items() if "weight" in n}
    for move in (nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float64), nn.Module.float):
        move(model)
        after = model.state_dict()
        assert all(torch.equal(after[n].view(-1), t.view(-1)) and after[n].dtype == t.dtype for n, t in before.items())
    half = copy.deepcopy(model).half()
    y = half(X.half())
    assert y.dtype == torch.float16
    assert half[0].weight.dtype == torch.float16
    torch.testing.assert_close(y.float(), model(X), atol=2e-2, rtol=2e-2)
    q = quanto.quantize_tensor(torch.randn(16, 96), qtype)
    assert q.half().dtype == torch.float16
    assert torch.equal(q.half().codes, q.codes)


@pytest.mark.parametrize("activations", [None, "int8"])
def test_autocast_is_obeyed(activations: str | None) -> None:
    model, reference = _frozen("int8", activations), _layers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(X).dtype == reference(X).dtype == torch.bfloat16


def test_frozen_weights_cannot_be_lost_to_edits() -> None:
    layer = _frozen()[0]
    assert not layer.weight_packed.requires_grad
    assert not layer.weight.requires_grad
    before = layer.weight_packed.clone()
    edits = [
        lambda: layer.weight.add_(1),
        lambda: layer.weight.data.mul_(2),
        lambda: layer.weight.copy_(torch.randn(64, 96)),
        lambda: layer.weight.zero_(),
        lambda: nn.init.normal_(layer.weight),
        lambda: setattr(layer, "weight", nn.Parameter(torch.randn(64, 96))),
        lambda: layer.weight.__setitem__(0, 1.0),
    ]
    for edit in edits:
        with pytest.raises((RuntimeError, AttributeError), match=r"lost|in place|takes a QTensor|frozen"):
            edit()
    assert torch.equal(layer.weight_packed, before)


def test_optimizers_cannot_step_frozen_weights_in_silence() -> None:
    model = quanto.quantize(_layers(), "int8")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    quanto.freeze(model)
    with pytest.raises(RuntimeError, match="replaced by codes"):
        optimizer.step()
    trainable = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model[0].bias.detach().clone()
    model(X).sum().backward()
    trainable.step()
    assert not torch.equal(model[0].bias, before)


def test_a_float_checkpoint_is_converted_not_ignored() -> None:
    model, other = _frozen("int4"), _layers()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(3).add_(0.01)
    assert model.load_state_dict(other.state_dict()).missing_keys == []
    expected = quanto.freeze(quanto.quantize(other, "int4"))
    assert torch.equal(model(X), expected(X))
    assert torch.equal(model[0].weight_packed, expected[0].weight_packed)


def test_codes_of_another_format_are_refused() -> None:
    with pytest.raises(RuntimeError, match="codes must be"):
        _frozen("int4").load_state_dict(_frozen("int8").state_dict())
    state = _frozen("int8").state_dict()
    state["0.weight_packed"] = state["0.weight_packed"].view(torch.uint8)
    with pytest.raises(RuntimeError, match="codes must be"):
        _frozen("int8").load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("qtype", QTYPES)
def test_zero_rows_stay_zero(qtype: str, dtype: torch.dtype) -> None:
    weight = torch.randn(4, 96, dtype=dtype)
    weight[1] = 0
    values = quanto.quantize_tensor(weight, qtype).dequantize()
    assert torch.equal(values[1], torch.zeros(96, dtype=dtype))
    assert not values.isnan().any()
    assert not quanto.quantize_tensor(torch.zeros(4, 96, dtype=dtype), qtype).dequantize().any()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_is_honoured_for_inputs(momentum: float) -> None:
    model = quanto.quantize(nn.Sequential(nn.Linear(4, 4)), "int8", "int8")
    with quanto.Calibration(momentum=momentum):
        for peak in (1.0, 3.0, 2.0):
            model(torch.tensor([[peak, 0, 0, -0.5]]))
    expected = momentum * (momentum * 1.0 + (1 - momentum) * 3.0) + (1 - momentum) * 2.0
    torch.testing.assert_close(model[0].input_scale, torch.tensor(expected / 127.5), rtol=1e-6, atol=0)


def test_uncalibrated_static_activations_are_an_error() -> None:
    model = quanto.quantize(_layers(), scheme="w8a8-static")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"run `with quanto\.Calibration"):
            model(X)
        if not model[0].frozen:
            quanto.freeze(model)


def test_training_after_calibration_without_no_grad() -> None:
    model = quanto.quantize(_layers(), "int8", "int8")
    with quanto.Calibration():
        model(X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_split_chunk_and_stack_have_right_sizes() -> None:
    q = quanto.quantize_activation(torch.randn(6, 8), "int8", torch.tensor(0.02))
    for got, want in ((q.split(2), (2, 8)), (q.chunk(3), (2, 8)), (q.split([1, 5]), None)):
        assert all(isinstance(p, quanto.QTensor) for p in got)
        if want:
            assert all(tuple(p.shape) == want == tuple(p.dequantize().shape) for p in got)
    assert [tuple(p.shape) for p in q.split([1, 5])] == [(1, 8), (5, 8)]
    other = quanto.quantize_activation(torch.randn(6, 8), "int8", torch.tensor(0.5))
    for pair in ((q, q), (q, other)):
        assert torch.equal(torch.stack(pair), torch.stack([p.dequantize() for p in pair]))


def test_group_sizes_are_stored() -> None:
    model = quanto.freeze(quanto.quantize(nn.Sequential(nn.Linear(96, 8)), "int4", group_size=24))
    assert model[0].weight_scale.shape == (8, 4)
    described = quanto.quantization_map(model)
    twin = quanto.requantize(nn.Sequential(nn.Linear(96, 8)), model.state_dict(), described)
    assert torch.equal(twin[0].weight.dequantize(), model[0].weight.dequantize())


def test_the_root_may_be_a_linear_layer() -> None:
    layer = nn.Linear(96, 8)
    expected = layer(X)
    assert quanto.freeze(quanto.quantize(layer, "int8")) is layer
    assert (layer(X) - expected).abs().max() < 0.05
    assert isinstance(layer.weight, quanto.QTensor)


def test_one_layer_under_two_names() -> None:
    model = nn.Module()
    model.one = model.two = nn.Linear(96, 96)
    quanto.freeze(quanto.quantize(model, "int8"))
    assert model.one is model.two
    assert torch.equal(model.one(X), model.two(X))
    assert model.two.frozen


def test_sizes_are_true() -> None:
    layer = nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16)
    quanto.freeze(quanto.quantize(layer, "int4"))
    groups = 1024 * 8
    expected = 1024 * 512 + groups * 2 + groups  # codes, bfloat16 scales, int8 zero points
    assert layer.weight.nbytes == expected
    assert layer.weight.element_size() == 1
    assert sum(t.nbytes for t in layer.state_dict().values()) == expected
    assert sum(p.nelement() * p.element_size() for p in layer.parameters()) <= expected + groups * 4


def test_loading_quantizes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _frozen("int4")
    state, described = model.state_dict(), quanto.quantization_map(model)

    def refuse(*args: object) -> None:
        raise AssertionError("quantized again")

    monkeypatch.setattr(Quantizer, "codes", refuse)
    with torch.device("meta"):
        empty = _layers()
    assert torch.equal(quanto.requantize(empty, state, described)(X), model(X))
