# SPDX-License-Identifier: Apache-2.0
"""Quantized models are one graph: compiled once for all token counts, exported, saved, and run without any plugin."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn import functional as F

import quanto
from quanto import ops
from quanto.kernels import kernels

G = torch.Generator().manual_seed(0)
Model = Callable[[], nn.Module]


def _float(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval().to(dtype)


def _static() -> nn.Module:
    model = quanto.quantize(_float(), scheme="w8a8-static")
    with quanto.Calibration(), torch.no_grad():
        model(torch.randn(64, 64, generator=G))
    return model


MODELS: dict[str, Model] = {
    "int8": lambda: quanto.freeze(quanto.quantize(_float(), "int8")),
    "int4 in groups": lambda: quanto.freeze(quanto.quantize(_float(), "int4", group_size=32)),
    "nvfp4": lambda: quanto.freeze(quanto.quantize(_float(), "nvfp4")),
    "dynamic int8": lambda: quanto.freeze(quanto.quantize(_float(), "int8", "int8")),
    "dynamic float8": lambda: quanto.freeze(quanto.quantize(_float(), "float8", "float8")),
    "static int8": lambda: quanto.freeze(_static()),
    "training int8": lambda: quanto.quantize(_float(), "int8"),
    "training static int8": _static,
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(model: nn.Module) -> tuple[Callable[..., Any], list[int]]:
    """The model compiled as one graph with sizes left open, and a list that grows with each graph."""
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return aot_eager(graph, inputs)

    return torch.compile(model, fullgraph=True, dynamic=True, backend=backend), graphs


def _plain(y: Any) -> torch.Tensor:
    return y.dequantize() if isinstance(y, quanto.QTensor) else y


# -- compiling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_one_graph_for_all_token_counts(name: str) -> None:
    model = MODELS[name]()
    compiled, graphs = _compiled(model)
    with torch.no_grad():
        compiled(torch.randn(4, 64, generator=G))
        first = len(graphs)  # torch itself needs two where constants of the model turn out not to be sizes
        for tokens in (2, 9, 33, 200):
            x = torch.randn(tokens, 64, generator=G)
            torch.testing.assert_close(compiled(x), _plain(model(x)), atol=1e-6, rtol=1e-6)
    assert first <= 2, "one, or two"
    assert len(graphs) == first, "another token count compiled again"


@pytest.mark.parametrize("name", ["int8", "dynamic int8", "static int8", "training int8", "training static int8"])
def test_gradients_pass_through_the_graph(name: str) -> None:
    model = MODELS[name]()
    compiled, _ = _compiled(model)
    grads = []
    for call in (compiled, model):
        x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        grads.append(torch.autograd.grad(call(x).square().sum(), [x, *parameters]))
    for mine, its in zip(*grads, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-5)


class Experts(nn.Module):
    """Raw weights read by name."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 32, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([F.linear(x, self.up[e]) for e in range(3)]).sum(0)


X = torch.randn(5, 64, generator=G)
INDICES = torch.randint(0, 40, (5, 6), generator=G)
MODULES: dict[str, tuple[Callable[[], nn.Module], Any, tuple[torch.Tensor, ...]]] = {
    "embedding": (lambda: nn.Embedding(40, 64), "int4", (INDICES,)),
    "bag": (lambda: nn.EmbeddingBag(40, 64), "int8", (INDICES,)),
    "conv": (lambda: nn.Conv2d(4, 8, 3), quanto.Scheme("int8", "int8"), (torch.randn(2, 4, 8, 8, generator=G),)),
    "attention": (lambda: nn.MultiheadAttention(64, 4), "int4", (X, X, X)),
    "experts": (Experts, quanto.Rule("", quanto.Scheme("int4"), ("up",)), (X,)),
    "layer norm": (lambda: nn.LayerNorm(64), quanto.Scheme("int8", "int8"), (X,)),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_every_kind_of_module_is_one_graph(name: str, frozen: bool) -> None:
    build, scheme, inputs = MODULES[name]
    torch.manual_seed(0)
    rules = [scheme] if isinstance(scheme, quanto.Rule) else [("*", scheme)]
    model = quanto.quantize(build().eval(), rules=rules)
    if frozen:
        quanto.freeze(model)
    compiled, graphs = _compiled(model)
    with torch.no_grad():
        mine, its = compiled(*inputs), model(*inputs)
    first = mine[0] if isinstance(mine, tuple) else mine
    torch.testing.assert_close(first, its[0] if isinstance(its, tuple) else its, atol=1e-6, rtol=1e-6)
    assert graphs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_a_layout_of_their_kernel(dtype: torch.dtype) -> None:
    """In bfloat16 the kernel runs; in another dtype the graph unpacks for the reference."""
    model = quanto.freeze(quanto.quantize(_float(torch.bfloat16)[:1], "int4", group_size=32))  # type: ignore[index]
    compiled, _ = _compiled(model.to(dtype))
    x = X.to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), atol=1e-2, rtol=1e-2)


def test_a_compiled_model_keeps_the_kernels_it_was_compiled_with() -> None:
    model = quanto.freeze(quanto.quantize(nn.Linear(64, 32, dtype=torch.bfloat16), "int8"))
    compiled, graphs = _compiled(model)
    x = X.bfloat16()
    with torch.no_grad():
        expected = compiled(x)
        with kernels.select("reference.linear"):
            assert torch.equal(compiled(x), expected)
    assert len(graphs) == 1


@pytest.mark.slow
def test_inductor() -> None:
    model = _static()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (3, 17):
            x = torch.randn(tokens, 64, generator=G)
            torch.testing.assert_close(compiled(x), _plain(model(x)), atol=2e-2, rtol=2e-2)


# -- exporting ---------------------------------------------------------------------------------------------------------


def _exported(model: nn.Module) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("tokens")},))


def _operators(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if "quanto" in str(node.target)}


@pytest.mark.parametrize("name", MODELS)
def test_exported_programs_are_saved_and_loaded(name: str) -> None:
    model = MODELS[name]()
    buffer = io.BytesIO()
    program = _exported(model)
    torch.export.save(program, buffer)
    buffer.seek(0)
    again = torch.export.load(buffer).module()
    for tokens in (2, 5, 70):
        x = torch.randn(tokens, 64, generator=G)
        with torch.no_grad():
            torch.testing.assert_close(again(x), _plain(model(x)), atol=1e-6, rtol=1e-6)
    known = {f"quanto_core.{op}.default" for op in ops.SCHEMAS}
    assert _operators(program) <= known, "only operators that core itself defines"


def test_a_program_runs_where_kernels_and_plugins_are_missing(tmp_path: Path) -> None:
    model = quanto.freeze(quanto.quantize(_float(torch.bfloat16), "int8"))
    x = X.bfloat16()
    with kernels.select("reference.linear"), torch.no_grad():
        expected = model(x)
    torch.export.save(_exported_like(model, x), tmp_path / "model.pt2")
    torch.save((x, expected), tmp_path / "data.pt")
    code = """
        import sys, torch, quanto
        folder = sys.argv[1]
        x, expected = torch.load(folder + "/data.pt")
        program = torch.export.load(folder + "/model.pt2").module()
        assert torch.equal(program(x), expected)
    """
    variables = os.environ | {"QUANTO_PLUGINS": "", "QUANTO_KERNELS": "-quanto-core"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], env=variables, check=True, timeout=300)


def _exported_like(model: nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, (x,))


def test_a_layout_is_undone_before_exporting() -> None:
    model = quanto.freeze(quanto.quantize(_float(torch.bfloat16), "int4", group_size=32))
    x = X.bfloat16()
    if all(m._slots["weight"].layout == "canonical" for m in model.modules() if isinstance(m, quanto.nn.QLinear)):
        pytest.skip("no kernel here has a layout of its own")
    with pytest.raises(RuntimeError, match=r"has the layout .*; call quanto\.arrange\(model, 'canonical'\) first"):
        _exported_like(model, x)
    quanto.arrange(model, "canonical")
    with kernels.select("reference.linear"), torch.no_grad():
        expected = model(x)
    assert torch.equal(_exported_like(model, x).module()(x), expected)
    quanto.arrange(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, atol=3e-2, rtol=3e-2)
