# SPDX-License-Identifier: Apache-2.0
"""Fakes have the shapes and types of what they stand for; so weights in panels may be on meta."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from weights import SHAPES, sample

import quanto
from quanto.qtypes import get_qtype
from quanto_backend_cpu.layout import PANELS
from quanto_backend_cpu.library import operator
from quanto_backend_cpu.specs import EVERY, INTEGERS


@pytest.mark.parametrize("group", [None, 0, 16, 37])
@pytest.mark.parametrize("qtype", sorted(EVERY))
def test_panels_are_packed_and_unpacked_on_meta(qtype: str, group: int | None) -> None:
    group = group if get_qtype(qtype).block is None else None
    for shape in SHAPES:
        w = sample(qtype, shape, group, "int" if qtype in INTEGERS else "none")
        away = tuple(None if t is None else t.to("meta") for t in w.canonical)
        packed = PANELS.pack(away, qtype, w.blocks, shape[1])
        back = PANELS.unpack(packed, qtype, w.blocks, shape[1])
        for fake, real in zip((*packed, *back), (*w.panels, *w.canonical), strict=True):
            assert (fake is None) == (real is None)
            if fake is not None and real is not None:
                assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("activations", [None, "int8"])
def test_a_parameter_left_on_meta_is_named(activations: str | None) -> None:
    layer = quanto.freeze(quanto.quantize(nn.Linear(96, 80), "int4", activations=activations))
    x = torch.randn(2, 96)
    for part, name in (("weight_packed", "codes"), ("weight_scale", "scale"), ("bias", "bias")):
        kept = getattr(layer, part)
        setattr(layer, part, nn.Parameter(kept.detach().to("meta"), requires_grad=False))
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"linear_panels: x.* is on cpu, {name} on meta"):
            layer(x)
        setattr(layer, part, kept)
    assert layer(x).isfinite().all()


_WEIGHTED = ("linear", "linear_integer", "scaled_linear", "dequantize", "embedding")


@pytest.mark.parametrize("name", [*_WEIGHTED, *(f"{op}_panels" for op in _WEIGHTED), "quantize", "pack_panels"])
def test_no_tensor_may_lie_elsewhere(name: str) -> None:
    """Of the fake's device, that is; one that lies on meta makes torch call it."""
    w = sample("int8", (20, 64), 32, "int")
    codes, scale, zero_point, _ = w.panels if name.endswith("_panels") and name != "pack_panels" else w.canonical
    values = {
        "x": torch.randn(20, 64),
        "x_codes": torch.ones(20, 64, dtype=torch.int8),
        "x_scale": torch.ones(20, 1),
        "indices": torch.tensor([3, 4]),
        "global_scale": torch.tensor(2.0),
        "bias": torch.ones(20),
        "out_scale": torch.tensor(0.1),
        "codes": codes,
        "scale": scale,
        "zero_point": zero_point,
        "x_qtype": "int8",
        "qtype": "int8",
        "block_size": [1, 32],
        "size": 64,
        "dtype": torch.float32,
    }
    call = operator(name)
    names = [a.name for a in call._schema.arguments if a.name in values]
    call(*(values[n] for n in names))
    first, *others = [n for n in names if isinstance(values[n], torch.Tensor)]
    for away in (first, *others):
        given = [values[n].to("meta") if n == away else values[n] for n in names]
        told = f"{first} is on meta, {others[0]} on cpu" if away == first else f"{first} is on cpu, {away} on meta"
        with pytest.raises(RuntimeError, match=f"^{name}: {told}$"):
            call(*given)


def test_they_trace() -> None:
    for qtype, zero, shape in (
        ("int4", "int", (33, 128)),
        ("int3", "none", (16, 100)),
        ("float8_e4m3fn", "none", (20, 64)),
    ):
        w = sample(qtype, shape, 32, zero)
        codes = w.canonical[0].view(torch.uint8)
        tail = [qtype, list(w.blocks), shape[1]]
        torch.library.opcheck(operator("pack_panels"), (codes, *w.canonical[1:3], *tail))
        torch.library.opcheck(operator("unpack_panels"), (w.panels[0], *w.panels[1:3], *tail))


def test_the_state_of_an_offloaded_layer_has_its_shapes() -> None:
    """Offloading puts parameters on meta one by one, without asking the module."""
    layer = quanto.freeze(quanto.quantize(nn.Linear(96, 80), "int4"))
    want = {name: (t.shape, t.dtype) for name, t in layer.state_dict().items()}
    assert quanto.explain(layer).layers[0].layout == "cpu.panels"
    for name, parameter in layer._parameters.items():
        if parameter is not None:
            layer._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    state = layer.state_dict()
    assert all(t.is_meta for t in state.values())
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == want
