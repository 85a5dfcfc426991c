# SPDX-License-Identifier: Apache-2.0
"""Layers that run as one: the same results, one product, and they part whenever their tensors become others."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto import reference
from quanto.kernels import KernelSpec, Layout, kernels
from quanto.plugins import plugins

CALLS: list[int] = []
STACKED: list[tuple[Any, ...]] = []


class _Undo(Exception):
    """Takes a transaction back."""


def _flip(tensors, qtype, block_size, size):  # type: ignore[no-untyped-def]
    return tuple(None if t is None or not t.ndim else t.flip(1) for t in tensors)


def _linear(x, codes, scale, zero, shared, bias, qtype, block):  # type: ignore[no-untyped-def]
    if not torch.compiler.is_compiling():
        CALLS.append(codes.shape[0])
    return reference.linear(x, *_flip((codes, scale, zero, shared), qtype, block, 0), bias, qtype, block)


@pytest.fixture(autouse=True)
def flipped() -> Iterator[None]:
    """A kernel whose layout has the columns backwards, and whose rows may be stacked by pairs."""
    plugins.load()
    spec = KernelSpec(
        "test.backwards", "linear", "cpu", _linear, {"int8", "int4"}, {torch.float32}, zero_points={"none", "int"},
        layout="test.backwards", priority=1000,
    )  # fmt: skip
    try:
        with kernels.transaction("test-plugin"):
            kernels.specs = {n: s for n, s in kernels.specs.items() if s.reference}
            told = lambda tensors, *rest: STACKED.append((tuple(tensors[0].shape), *rest))  # noqa: E731
            kernels.register_layout(Layout("test.backwards", _flip, _flip, stacks=2, stacked=told))
            kernels.register(spec)
            yield
            raise _Undo
    except _Undo:
        pass


class Block(nn.Module):
    def __init__(self, bias: bool = False, other: bool = False, keys: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_proj = nn.Linear(64, 32, bias=bias)
        self.k_proj = nn.Linear(64, keys, bias=bias)
        self.v_proj = nn.Linear(64, 16, bias=bias)
        self.other = other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        context = x + 1 if self.other else x
        return torch.cat([self.q_proj(x), self.k_proj(context), self.v_proj(context)], -1)


def _block(qtype: str = "int4", **options: Any) -> Block:
    block = quanto.freeze(quanto.quantize(Block(**options), qtype))
    assert isinstance(block, Block)
    block(torch.randn(1, 64))  # the kernel is checked
    CALLS.clear()
    return block.eval()


X = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
NAMES = ("q_proj", "k_proj", "v_proj")


@torch.no_grad()
@pytest.mark.parametrize("qtype", ["int8", "int4"])
@pytest.mark.parametrize("bias", [False, True])
def test_one_product_with_the_same_results(qtype: str, bias: bool) -> None:
    block = _block(qtype, bias=bias)
    want, state = block(X), {n: t.clone() for n, t in block.state_dict().items()}
    before = sum(p.numel() * p.element_size() for p in block.parameters())
    STACKED.clear()
    assert quanto.join(block) == [NAMES]
    size, blocks = 32 if qtype == "int4" else 64, block.q_proj.operand().block_size
    assert STACKED.pop() == ((64, size), qtype, blocks, 64)
    assert not STACKED
    CALLS.clear()
    for _ in range(3):
        assert torch.allclose(block(X), want, rtol=0, atol=1e-6)
    assert CALLS == [64] * 3
    assert all(torch.equal(t, state[n]) for n, t in block.state_dict().items())
    stored = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in block.parameters()}
    assert sum(stored.values()) == before
    assert quanto.join(block) == []  # they are joined already


@torch.no_grad()
def test_another_input_is_computed_alone() -> None:
    block = _block(other=True)
    want = block(X)
    quanto.join(block)
    for _ in range(5):
        assert torch.allclose(block(X), want, rtol=0, atol=1e-6)
    assert "_joined" not in block.q_proj.__dict__  # two of three products were for nobody
    changed = X.clone()
    block = _block()
    quanto.join(block)
    block.q_proj(changed)
    changed.add_(1)
    assert torch.allclose(block.k_proj(changed), _block().k_proj(changed), rtol=0, atol=1e-6)


def test_gradients_reach_the_input_and_the_bias() -> None:
    block, alone = _block(bias=True), _block(bias=True)
    quanto.join(block)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    block(x).square().sum().backward()
    alone(y).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.allclose(x.grad, y.grad, rtol=1e-5, atol=1e-4)
    assert torch.allclose(block.k_proj.bias.grad, alone.k_proj.bias.grad, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # the joined product has the bias that an optimizer changes
        for b in (block, alone):
            b.k_proj.bias.add_(1)
        assert torch.allclose(block(X), alone(X), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("how", ["copy", "pickle", "load", "arrange", "double", "dequantize", "replace"])
def test_what_changes_the_tensors_parts_the_layers(how: str) -> None:
    block, other = _block(), quanto.freeze(quanto.quantize(Block().requires_grad_(False), "int4"))
    want = block(X)
    quanto.join(block)
    if how in ("copy", "pickle"):
        made = copy.deepcopy(block) if how == "copy" else pickle.loads(pickle.dumps(block))
        assert made.q_proj._joined is None
        assert block.q_proj._joined is not None
        block = made
    elif how == "load":
        for layer in (other.q_proj, other.k_proj, other.v_proj):
            layer.weight_scale.data.mul_(2)
        block.load_state_dict(other.state_dict())
        want = other(X)
    elif how == "arrange":
        quanto.arrange(block, "canonical")
    elif how == "double":
        block.double().float()
    elif how == "dequantize":
        quanto.dequantize(block)
    else:
        for layer in (block.q_proj, block.k_proj, block.v_proj):
            layer.weight_packed = nn.Parameter(layer.weight_packed.clone(), requires_grad=False)
    assert torch.allclose(block(X).float(), want, rtol=0, atol=1e-5)
    assert getattr(block.q_proj, "_joined", None) is None


@torch.no_grad()
def test_compiles_to_one_product() -> None:
    block = _block()
    want = block(X)
    quanto.join(block)
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(block, backend=backend, fullgraph=True)
    for _ in range(2):
        assert torch.allclose(compiled(X), want, rtol=0, atol=1e-6)
    (graph,) = graphs
    assert block.q_proj._joined.joined._last is None  # type: ignore[union-attr]
    # the input, and codes, scales and zero points of all; nothing of one layer
    assert len([n for n in graph.graph.nodes if n.op == "placeholder"]) == 4


@pytest.mark.parametrize(
    ("options", "quantize"),
    [
        ({"keys": 15}, {}),
        ({}, {"activations": "int8"}),
        ({}, {"rules": [("v_proj", "int8")]}),
        ({}, {"exclude": "k_*"}),
    ],
)
def test_layers_that_do_not_fit_stay_by_themselves(options: dict[str, Any], quantize: dict[str, Any]) -> None:
    block = quanto.freeze(quanto.quantize(Block(**options), "int4", **quantize))
    assert quanto.join(block) == []
    quanto.arrange(block, "canonical")
    assert quanto.join(block) == []
