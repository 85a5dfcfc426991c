# SPDX-License-Identifier: Apache-2.0
"""Weights in a kernel's own layout: one payload, canonical state, right results whoever computes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import quanto
from quanto import reference
from quanto.kernels import KernelSpec, Layout, kernels
from quanto.plugins import plugins

X = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
CALLS: list[int] = []


class _Undo(Exception):
    """Takes a transaction back."""


def _flip(tensors, qtype, block_size, size):
    return tuple(None if t is None or not t.ndim else t.flip(0) for t in tensors)


def _linear(x, codes, scale, zero, shared, bias, qtype, block):
    CALLS.append(1)
    return reference.linear(x, *_flip((codes, scale, zero, shared), qtype, block, 0), bias, qtype, block)


@pytest.fixture(autouse=True)
def flipped() -> Iterator[None]:
    """A kernel for float32 int8 and int4 whose layout has the rows upside down, and no other beside the references."""
    plugins.load()
    CALLS.clear()
    spec = KernelSpec(
        "test.flipped", "linear", "cpu", _linear, {"int8", "int4"}, {torch.float32}, zero_points={"none", "int"},
        layout="test.upside-down", priority=1000,
    )  # fmt: skip
    try:
        with kernels.transaction("test-plugin"):
            kernels.specs = {n: s for n, s in kernels.specs.items() if s.reference}
            kernels.register_layout(Layout("test.upside-down", _flip, _flip))
            kernels.register(spec)
            yield
            raise _Undo
    except _Undo:
        pass
    assert "test.flipped" not in kernels.specs


def _float(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48, bias=bias), nn.ReLU(), nn.Linear(48, 16))


def _model(qtype: str = "int8") -> nn.Module:
    return quanto.freeze(quanto.quantize(_float(), qtype))


def _canonical(qtype: str = "int8") -> nn.Module:
    model = _model(qtype)
    quanto.arrange(model, "canonical")
    return model


def _layouts(model: nn.Module) -> set[str]:
    return {m._slots["weight"].layout for m in model.modules() if isinstance(m, quanto.nn.QModule)}


def _same_state(a: nn.Module, b: nn.Module) -> bool:
    mine, its = a.state_dict(), b.state_dict()
    return mine.keys() == its.keys() and all(
        torch.equal(t, its[n]) and t.dtype == its[n].dtype for n, t in mine.items()
    )


@pytest.mark.parametrize("qtype", ["int8", "int4"])
def test_arranging_changes_memory_and_nothing_else(qtype: str) -> None:
    model, plain = _model(qtype), _canonical(qtype)
    assert _layouts(model) == {"test.upside-down"}
    assert _layouts(plain) == {"canonical"}
    assert torch.equal(model[0].weight_packed, plain[0].weight_packed.flip(0))
    assert _same_state(model, plain), "a state dict is canonical"
    assert torch.equal(model[0].weight.dequantize(), plain[0].weight.dequantize())
    assert torch.equal(model[0].effective(), plain[0].effective())
    assert sum(p.nbytes for p in model.parameters()) == sum(p.nbytes for p in plain.parameters())
    expected = plain(X)
    assert CALLS == []
    torch.testing.assert_close(model(X), expected, atol=1e-6, rtol=1e-5)
    assert len(CALLS) >= 2
    for layout in ("canonical", None, "test.upside-down", "canonical"):
        quanto.arrange(model, layout)
        assert _layouts(model) == {layout or "test.upside-down"}
        assert _same_state(model, plain)


def test_other_dtypes_unpack_for_the_reference() -> None:
    model, plain = _model(), _canonical()
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(model(X), plain(X))
    assert _layouts(model) == {"test.upside-down"}
    assert "takes dtype float32, not float16" in str(quanto.explain(model, torch.float16))
    assert _layouts(model.half()) == {"canonical"}  # arranged anew
    assert torch.equal(model(X.half()), plain.half()(X.half()))
    assert torch.equal(model.float()(X), plain.float()(X))
    assert _layouts(model) == {"test.upside-down"}
    x = X.clone().requires_grad_()
    y = X.clone().requires_grad_()
    model(x).sum().backward()
    plain(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-6, rtol=1e-5)


def test_calls_are_chosen_anew_after_every_change() -> None:
    model = _model()
    expected = model(X)

    def called() -> bool:
        CALLS.clear()
        torch.testing.assert_close(model(X), expected, atol=1e-6, rtol=1e-5)
        return bool(CALLS)

    assert called()
    for name in ("-test.flipped", "-test-plugin", "reference.linear"):
        with kernels.select(name):
            assert not called(), name
        assert called()
    quanto.arrange(model, "canonical")
    assert not called()
    quanto.arrange(model)
    assert called()


def test_copies_keep_the_layout_and_pickles_are_canonical() -> None:
    model, plain = _model(), _canonical()
    assert _layouts(copy.deepcopy(model)) == {"test.upside-down"}
    assert _same_state(copy.deepcopy(model), plain)
    data = pickle.dumps(model)
    assert _layouts(model) == {"test.upside-down"}, "pickling changes nothing"
    again = pickle.loads(data)
    assert _layouts(again) == {"test.upside-down"}, "what was arranged is arranged again"
    assert torch.equal(again(X), model(X))
    with kernels.select("-test.flipped"):
        elsewhere = pickle.loads(data)
    assert _layouts(elsewhere) == {"canonical"}, "where the kernel is missing the weight stays as files have it"
    assert torch.equal(elsewhere(X), plain(X))


@pytest.mark.parametrize("assign", [False, True])
def test_loading_into_an_arranged_model(assign: bool) -> None:
    model, other = _model(), _float()
    with torch.no_grad():
        other[0].weight.mul_(-2)
    quantized = quanto.freeze(quanto.quantized(other, "int8"))
    state = copy.deepcopy(quantized.state_dict())
    model.load_state_dict(state, assign=assign)
    assert _layouts(model) == {"test.upside-down"}
    assert torch.equal(model(X), quantized(X))
    model = _model()
    model.load_state_dict(other.state_dict(), assign=assign)  # floats are quantized on the way
    assert _layouts(model) == {"test.upside-down"}
    assert torch.equal(model(X), quantized(X))


def test_loading_and_dequantizing(tmp_path) -> None:
    model = _model()
    quanto.save(model, tmp_path)
    with kernels.select("-test.flipped"):
        plain = quanto.load(tmp_path, _float())
    again = quanto.load(tmp_path, _float())
    assert (_layouts(plain), _layouts(again)) == ({"canonical"}, {"test.upside-down"})
    assert torch.equal(again(X), model(X))
    back = quanto.dequantize(model)
    assert torch.equal(back[0].weight, plain[0].weight.dequantize())


def test_tied_weights_stay_canonical_and_one() -> None:
    model = _float(bias=False)
    model.append(nn.Linear(64, 48, bias=False))
    model[3].weight = model[0].weight
    quanto.freeze(quanto.quantize(model, "int8"))
    assert model[3].weight_packed is model[0].weight_packed
    assert [model[i]._slots["weight"].layout for i in (0, 2, 3)] == ["canonical", "test.upside-down", "canonical"]


def test_weights_for_quantized_activations_are_not_arranged() -> None:
    assert _layouts(quanto.freeze(quanto.quantize(_float(), "int8", "int8"))) == {"canonical"}
    with torch.device("meta"):
        empty = _float()
    assert _layouts(quanto.freeze(quanto.quantize(empty, "int8"))) == {"canonical"}


def test_leaving_the_device_undoes_the_layout() -> None:
    model = _model().to("meta")
    assert _layouts(model) == {"canonical"}
    assert model[0].weight_packed.shape == (48, 64)
