# SPDX-License-Identifier: Apache-2.0
"""Every quantized module computes what its float twin computes on the quantized values."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quanto
from quanto.nn import QLinear, QModule, QParameters, modules

G = torch.Generator().manual_seed(0)


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=G)


INDICES = torch.randint(0, 40, (3, 7), generator=G)
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "linear": (lambda: nn.Linear(96, 24), (_x(2, 3, 96),)),
    "linear without bias": (lambda: nn.Linear(96, 24, bias=False), (_x(96),)),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, padding=1), (_x(2, 8, 20),)),
    "conv1d causal": (lambda: nn.Conv1d(8, 8, 3, padding="same", padding_mode="replicate"), (_x(2, 8, 20),)),
    "conv2d": (lambda: nn.Conv2d(8, 12, 3, stride=2), (_x(2, 8, 11, 9),)),
    "conv2d depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (_x(2, 8, 9, 9),)),
    "conv2d circular": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (_x(2, 6, 9, 9),)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (_x(1, 4, 5, 5, 5),)),
    "conv transpose 1d": (lambda: nn.ConvTranspose1d(8, 6, 3, stride=2), (_x(2, 8, 9),)),
    "conv transpose 2d": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1), (_x(2, 8, 5, 5),)),
    "conv transpose 2d grouped": (lambda: nn.ConvTranspose2d(8, 6, 3, groups=2), (_x(2, 8, 5, 5),)),
    "conv transpose 3d": (lambda: nn.ConvTranspose3d(4, 3, 2), (_x(1, 4, 3, 3, 3),)),
    "embedding": (lambda: nn.Embedding(40, 48, padding_idx=1), (INDICES,)),
    "bag mean": (lambda: nn.EmbeddingBag(40, 48, mode="mean"), (INDICES,)),
    "bag sum padded": (lambda: nn.EmbeddingBag(40, 48, mode="sum", padding_idx=int(INDICES[0, 0])), (INDICES,)),
    "bag max": (lambda: nn.EmbeddingBag(40, 48, mode="max"), (INDICES,)),
    "bag offsets": (lambda: nn.EmbeddingBag(40, 48), (INDICES.flatten(), torch.tensor([0, 4, 4, 20]))),
    "bag weighted": (lambda: nn.EmbeddingBag(40, 48, mode="sum"), (INDICES, None, torch.rand(3, 7, generator=G))),
    "attention": (lambda: nn.MultiheadAttention(32, 4), (_x(5, 2, 32),) * 3),
    "attention batch first": (
        lambda: nn.MultiheadAttention(32, 4, batch_first=True),
        (_x(2, 5, 32), *(_x(2, 7, 32),) * 2),
    ),
    "attention of unlike widths": (
        lambda: nn.MultiheadAttention(32, 4, kdim=16, vdim=24),
        (_x(5, 2, 32), _x(7, 2, 16), _x(7, 2, 24)),
    ),
    "attention masked": (
        lambda: nn.MultiheadAttention(32, 4, batch_first=True),
        (*(_x(2, 5, 32),) * 3, torch.tensor([[False] * 5, [False] * 3 + [True] * 2])),
    ),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (_x(2, 5, 32),)),
    "decoder layer": (lambda: nn.TransformerDecoderLayer(32, 4, 64), (_x(5, 2, 32), _x(6, 2, 32))),
}


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("qtype", ["int8", "int4", "int3", "float8", "nf4", "mxfp4"])
@pytest.mark.parametrize("name", CASES)
def test_computes_on_the_quantized_values(name: str, qtype: str) -> None:
    build, inputs = CASES[name]
    torch.manual_seed(0)
    module = build().eval()
    expected_close = _first(module(*inputs))
    quanto.quantize(module, rules=[quanto.Rule("*", quanto.Scheme.of(qtype))])
    trainable = _first(module(*inputs))
    assert any(isinstance(m, QModule) for m in module.modules())
    quanto.freeze(module)
    frozen = _first(module(*inputs))
    twin = quanto.dequantize(copy.deepcopy(module))
    assert not any(isinstance(m, QModule) for m in twin.modules())
    torch.testing.assert_close(frozen, _first(twin(*inputs)), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(trainable, frozen, atol=2e-5, rtol=1e-4)
    if qtype == "int8":
        assert (frozen - expected_close).abs().max() < 0.03 * expected_close.abs().max()
    state = copy.deepcopy(module.state_dict())
    again = quanto.requantize(build().eval(), state, quanto.quantization_map(module))
    assert torch.equal(_first(again(*inputs)), frozen)
    assert torch.equal(_first(pickle.loads(pickle.dumps(module))(*inputs)), frozen)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_the_weights_while_trainable(name: str) -> None:
    build, inputs = CASES[name]
    module = build()
    quanto.quantize(module, rules=[quanto.Rule("*", quanto.Scheme.of("int4"))])
    _first(module(*inputs)).square().sum().backward()
    for m in module.modules():
        for slot in getattr(m, "_slots", {}):
            grad = m._parameters[slot].grad
            assert grad is not None, slot
            assert grad.abs().sum() > 0


@pytest.mark.parametrize("name", CASES)
def test_weights_answer_as_tensors(name: str) -> None:
    build, _ = CASES[name]
    module = build()
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    quanto.freeze(quanto.quantize(module, rules=[quanto.Rule("*", quanto.Scheme.of("int8"))]))
    for prefix, m in module.named_modules():
        for slot in getattr(m, "_slots", {}):
            weight = getattr(m, slot)
            assert isinstance(weight, quanto.QTensor)
            assert tuple(weight.shape) == shapes[f"{prefix}.{slot}".lstrip(".")]
            torch.testing.assert_close(weight.dequantize(), m.effective(slot), atol=0, rtol=0)


@pytest.mark.parametrize("activations", ["int8", "float8"])
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv transpose 2d"])
def test_activations_are_quantized(name: str, activations: str) -> None:
    build, inputs = CASES[name]
    torch.manual_seed(0)
    module = build()
    expected = module(*inputs)
    quanto.freeze(quanto.quantize(module, "int8", activations))
    error = (module(*inputs) - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05


class Experts(nn.Module):
    """Fused mixture-of-experts weights, one of them transposed, read by name."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 32, 64))
        self.down = nn.Parameter(torch.randn(3, 32, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([F.linear(x, self.up[e]).relu() @ self.down[e] for e in range(3)]).sum(0)


@pytest.mark.parametrize("qtype", ["int8", "int4", "float8"])
def test_expert_parameters(qtype: str) -> None:
    torch.manual_seed(0)
    module = Experts()
    rule = quanto.Rule("", quanto.Scheme(qtype, group_size=32), ("up", "down.T"))
    quanto.freeze(quanto.quantize(module, rules=[rule]))
    assert isinstance(module, QParameters)
    assert isinstance(module.up[1], quanto.QTensor)
    assert isinstance(module.down[1], quanto.QTensor)
    assert module.up_packed.shape == (3, 32, 64 if qtype != "int4" else 32)
    assert module.down_packed.shape == (3, 64, 32 if qtype != "int4" else 16)
    x = _x(5, 64)
    frozen = module(x)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), frozen)
    torch.testing.assert_close(frozen, quanto.dequantize(module)(x), atol=1e-3, rtol=1e-4)


class Own(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Renamed(nn.Linear):
    """A subclass that only has another name."""


def test_subclasses_are_respected() -> None:
    model = nn.Sequential(Own(8, 8), Renamed(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    hooked: list[int] = []
    model[1].register_forward_hook(lambda *_: hooked.append(1))
    model[1].note = "kept"
    model.eval()
    quanto.freeze(quanto.quantize(model, "int8"))
    assert type(model[0]) is Own
    assert "forward of its own" in str(quanto.explain(model))
    assert isinstance(model[1], Renamed)
    assert isinstance(model[1], QLinear)
    assert type(model[1]).__name__ == "QRenamed"
    model(_x(2, 8))
    assert hooked == [1]
    assert model[1].note == "kept"
    assert not any(m.training for m in model.modules())
    model[1]._forward_hooks.clear()
    assert torch.equal(pickle.loads(pickle.dumps(model[1]))(X8), model[1](X8))


X8 = _x(2, 8)


def test_parametrized_weights_are_baked_in() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
    expected = quanto.quantize_tensor(layer.weight.detach(), "int8")
    x = _x(2, 16)
    before = layer(x)
    quanto.quantize(layer, "int8")
    (layer(x) - before).abs().max()
    quanto.freeze(layer)
    assert torch.equal(layer.weight.dequantize(), expected.dequantize())


def test_tied_weights_stay_tied_or_float() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(40, 32)
            self.head = nn.Linear(32, 40, bias=False)
            self.head.weight = self.embed.weight

    model = quanto.quantize(Model(), "int8")
    assert type(model.head) is nn.Linear
    assert "tied to 'embed'" in str(quanto.explain(model))
    both = quanto.freeze(quanto.quantize(Model(), "int8", include=["embed", "head"]))
    assert both.head.weight_packed is both.embed.weight_packed
    back = quanto.dequantize(both)
    assert back.head.weight is back.embed.weight


def test_models_on_meta_are_quantized() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(96, 64), nn.Conv2d(4, 8, 3), nn.Embedding(9, 32))
    quanto.freeze(quanto.quantize(model, "int4", rules={"2": "int8"}))
    assert all(p.is_meta for p in model.parameters())
    assert model[0].weight_packed.shape == (64, 48)


def test_a_twin_of_ones_own() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight) * 0.5

    class QScaled(QModule, Scaled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.effective()) * 0.5

    modules.register(Scaled, QScaled)
    try:
        model = nn.Sequential(Scaled())
        x = _x(3, 16)
        expected = model(x)
        quanto.freeze(quanto.quantize(model, "int8"))
        assert type(model[0]) is QScaled
        assert (model(x) - expected).abs().max() < 0.05
        with pytest.raises(ValueError, match="has the twin QScaled already"):
            modules.register(Scaled, QScaled)
        with pytest.raises(TypeError, match=r"must inherit quanto\.nn\.QModule"):
            modules.register(nn.Bilinear, nn.Bilinear)  # type: ignore[arg-type]
    finally:
        del modules.twins[Scaled]
