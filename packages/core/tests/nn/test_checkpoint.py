# SPDX-License-Identifier: Apache-2.0
"""State dicts: floats are quantized, codes freeze, and what does not fit is named before anything changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.nn.checkpoint import check_parts, postponed, resolve, source
from quanto.nn.slot import Slot

State = dict[str, torch.Tensor]
X = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


def _model(weights: str = "int4", seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return quanto.quantize(nn.Sequential(nn.Linear(64, 32)), weights, **options)


def _state(weights: str = "int4", seed: int = 1, **options: Any) -> State:
    return copy.deepcopy(quanto.freeze(_model(weights, seed, **options)).state_dict())


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("weights", ["int8", "int4", "float8", "mxfp4", "nvfp4"])
def test_codes_freeze_a_trainable_module(weights: str, assign: bool) -> None:
    model, state = _model(weights), _state(weights)
    optimizer = torch.optim.SGD([model[0].weight], lr=0.1)
    assert model.load_state_dict(state, assign=assign) == ([], [])
    assert model[0].frozen
    assert torch.equal(model(X), quanto.freeze(_model(weights, 1))(X))
    assert (model[0].weight_packed.data_ptr() == state["0.weight_packed"].data_ptr()) == assign
    with pytest.raises(RuntimeError, match="replaced by codes"):
        optimizer.step()


def test_codes_leave_tied_modules_tied() -> None:
    def tied(seed: int) -> Any:
        torch.manual_seed(seed)
        model = nn.ModuleList([nn.Embedding(32, 64), nn.Linear(64, 32, bias=False), nn.Linear(64, 32, bias=False)])
        model[1].weight = model[0].weight
        return quanto.quantize(model, "int4", include="*")

    state = quanto.freeze(tied(1)).state_dict()
    model = tied(0)
    model.load_state_dict(state)
    for part in ("packed", "scale", "zero_point"):
        first, second, third = (getattr(m, f"weight_{part}") for m in model)
        assert first is second
        assert second is not third
        assert torch.equal(first, state[f"0.weight_{part}"])
        assert torch.equal(third, state[f"2.weight_{part}"])


@pytest.mark.parametrize("assign", [False, True])
def test_floats_are_quantized_by_a_frozen_module(assign: bool) -> None:
    model, other = quanto.freeze(_model()), nn.Sequential(nn.Linear(64, 32))
    state = dict(other.state_dict())
    assert model.load_state_dict(state, assign=assign) == ([], [])
    assert set(state) == {"0.weight", "0.bias"}, "the caller's dictionary is not touched"
    assert torch.equal(model(X), quanto.freeze(quanto.quantize(other, "int4"))(X))


def test_floats_go_into_a_trainable_module_as_they_are() -> None:
    model, other = _model(), nn.Linear(64, 32)
    model.load_state_dict({f"0.{n}": t for n, t in other.state_dict().items()})
    assert torch.equal(model[0].weight, other.weight)


def test_scales_of_activations_come_along() -> None:
    state = _state("int8", activations="int8")
    model = quanto.freeze(_model("int8", activations="int8"))
    state |= {"0.input_scale": torch.tensor(0.5), "0.output_scale": torch.tensor([0.25], dtype=torch.bfloat16)}
    model.load_state_dict(state)
    assert (model[0].input_scale.item(), model[0].output_scale.item()) == (0.5, 0.25)
    model.load_state_dict(state | {"0.input_scale": torch.tensor(2.0)})
    assert model[0].input_scale.item() == 2.0


def _drop(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


def _set(name: str, value: Callable[[State], torch.Tensor]) -> Callable[[State], None]:
    return lambda state: state.__setitem__(name, value(state))


BAD: dict[str, tuple[Callable[[State], None], str]] = {
    "both": (_set("0.weight", lambda s: torch.zeros(32, 64)), "0.weight and 0.weight_packed are both given"),
    "scale missing": (_drop("0.weight_scale"), "0.weight: .*needs scale"),
    "zero point missing": (_drop("0.weight_zero_point"), "0.weight: the scheme int4 needs zero_point"),
    "global scale": (_set("0.weight_global_scale", lambda s: torch.ones(())), "the scheme int4 has no global_scale"),
    "codes of another dtype": (_set("0.weight_packed", lambda s: s["0.weight_packed"].int()), "codes must be"),
    "codes of another shape": (_set("0.weight_packed", lambda s: s["0.weight_packed"][1:]), "codes must be"),
    "scale of another shape": (_set("0.weight_scale", lambda s: s["0.weight_scale"].T), "scale must have shape"),
    "scale of another dtype": (_set("0.weight_scale", lambda s: s["0.weight_scale"].double()), "scale must be"),
    "zero point of another dtype": (
        _set("0.weight_zero_point", lambda s: s["0.weight_zero_point"].int()),
        "zero_point",
    ),
    "input scale of many": (
        _set("0.input_scale", lambda s: torch.ones(2)),
        "0.input_scale must be one floating number",
    ),
    "input scale of integers": (_set("0.input_scale", lambda s: torch.ones((), dtype=torch.int8)), "floating number"),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name: str, frozen: bool) -> None:
    damage, sentence = BAD[name]
    state, model = _state(), _model()
    damage(state)
    if frozen:
        quanto.freeze(model)
    weight = model[0].effective().detach().clone()
    with pytest.raises(RuntimeError, match=sentence):
        model.load_state_dict(state)
    if not name.startswith("input"):
        assert torch.equal(model[0].effective(), weight), "and the weight is what it was"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.zeros(31, 64), r"0.weight must be floating of shape \(32, 64\), got torch.float32 \(31, 64\)"),
        (torch.zeros(32, 64, dtype=torch.int8), "got torch.int8"),
    ],
)
def test_floats_that_do_not_fit(value: torch.Tensor, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        quanto.freeze(_model()).load_state_dict({"0.weight": value, "0.bias": torch.zeros(32)})


@pytest.mark.parametrize("key", ["0.weight", "0.weight_packed", "0.weight_scale", "0.input_scale"])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_no_tensor_is_named(key: str, frozen: bool) -> None:
    model = quanto.freeze(_model()) if frozen else _model()
    with pytest.raises(RuntimeError, match=f"{key} must be a tensor, got float"):
        model.load_state_dict({**_state(), key: 0.5})


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", sorted(quanto.qtypes))
@pytest.mark.parametrize("shape", [(32, 64), (3, 8, 64), (5, 33)])
def test_parts_of_every_qtype_are_accepted(weights: str, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        slot = Slot(quanto.Scheme(weights), shape, dtype)
        q = quanto.quantize_tensor(torch.randn(shape, dtype=dtype), weights)
        parts = {"packed": q.codes, "scale": q.scale, "zero_point": q.zero_point, "global_scale": q.global_scale}
        check_parts(slot, {n: t for n, t in parts.items() if t is not None})


@pytest.mark.parametrize(
    ("weights", "options", "part", "change", "sentence"),
    [
        ("mxfp4", {}, "scale", lambda t: t.float(), "scale must be torch.float8_e8m0fnu for mxfp4"),
        ("int8", {"scale_dtype": "bfloat16"}, "scale", lambda t: t.float(), "scale must be torch.bfloat16 for int8"),
        ("int8", {}, "scale", lambda t: t.double(), "torch.float32 or torch.bfloat16 or torch.float16"),
        ("nvfp4", {}, "global_scale", lambda t: t.double(), r"global_scale must be torch.float32 \(\)"),
        ("nvfp4", {}, "global_scale", lambda t: t.reshape(1), r"got torch.float32 \(1,\)"),
        ("int4", {}, "zero_point", lambda t: t.long(), "zero_point must be int8 or floating, got torch.int64"),
        ("int8", {}, "zero_point", lambda t: torch.zeros(32, 1), "the scheme int8 has no zero_point"),
    ],
)
def test_parts_of_another_kind_are_refused(
    weights: str, options: dict[str, Any], part: str, change: Callable[[Any], Any], sentence: str
) -> None:
    q = quanto.quantize_tensor(torch.randn(32, 64), weights, **options)
    parts = {"packed": q.codes, "scale": q.scale, "zero_point": q.zero_point, "global_scale": q.global_scale}
    parts[part] = change(parts[part])
    slot = Slot(quanto.Scheme(weights, **options), (32, 64), torch.float32)
    with pytest.raises(ValueError, match=sentence):
        check_parts(slot, {n: t for n, t in parts.items() if t is not None})


# -- placeholders ------------------------------------------------------------------------------------------------------


def test_canonical_tensors_need_no_placeholder() -> None:
    model = quanto.freeze(_model())
    with postponed():
        state = model.state_dict()
    assert all(source(t) is None and resolve(t) is t for t in state.values())


def test_placeholders_stand_for_what_is_arranged() -> None:
    model = quanto.freeze(_model("int4", group_size=32).bfloat16())
    if model[0]._slots["weight"].layout == "canonical":
        pytest.skip("no kernel here has a layout of its own")
    want = {n: t.clone() for n, t in model.state_dict().items()}
    with postponed():
        state = model.state_dict()
    packed = state["0.weight_packed"]
    assert packed.is_meta
    assert source(packed) == (model[0], "weight", "packed")
    assert {n: (t.shape, t.dtype) for n, t in state.items()} == {n: (t.shape, t.dtype) for n, t in want.items()}
    assert all(torch.equal(resolve(t), want[n]) for n, t in state.items())
    assert not model.state_dict()["0.weight_packed"].is_meta, "only inside"
