# SPDX-License-Identifier: Apache-2.0
"""The table says what runs in each layer and why nothing faster does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto import reference
from quanto.explain import LayerReport
from quanto.kernels import KernelSpec, kernels
from quanto.plugins import plugins


class _Undo(Exception):
    """Takes a transaction back."""


@pytest.fixture(autouse=True)
def _two_kernels() -> Iterator[None]:
    """Kernels for int8: `test.fast` takes bfloat16 and an even number of rows, `test.slow` any float."""
    plugins.load()

    def spec(name: str, **claims: Any) -> KernelSpec:
        return KernelSpec(name, "linear", "cpu", reference.linear, {"int8"}, **claims)

    refuse = {"refuse": lambda r: "needs an even number of rows" if r.shape[0] % 2 else None}
    try:
        with kernels.transaction("test-plugin"):
            kernels.specs = {n: s for n, s in kernels.specs.items() if s.reference}
            kernels.register(spec("test.fast", dtypes={torch.bfloat16}, priority=100, **refuse))
            kernels.register(spec("test.slow", priority=50))
            yield
            raise _Undo
    except _Undo:
        pass


def _model() -> Any:
    torch.manual_seed(0)
    layers = {
        "even": nn.Linear(32, 16),
        "odd": nn.Linear(32, 15),
        "also_odd": nn.Linear(32, 13),
        "norm": nn.LayerNorm(8),
    }
    return nn.ModuleDict(layers)


def _reports(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, LayerReport]:
    return {layer.name: layer for layer in quanto.explain(model, dtype).layers}


def test_each_layer_names_its_kernel_and_the_faster_ones() -> None:
    model = quanto.freeze(quanto.quantize(_model(), "int8").bfloat16())
    found = _reports(model)
    assert {n: r.kernel for n, r in found.items()} == {"even": "test.fast", "odd": "test.slow", "also_odd": "test.slow"}
    assert found["even"].refused == ()
    assert found["odd"].refused == (("test.fast", "needs an even number of rows"),)
    assert (found["odd"].module, found["odd"].scheme, found["odd"].layout) == ("QLinear", "int8", "canonical")
    assert found["odd"].bytes == 15 * 32 + 15 * 2 + 15 * 2, "codes, scales and bias of bfloat16"
    other = _reports(model, torch.float32)
    assert {r.kernel for r in other.values()} == {"test.slow"}
    assert other["even"].refused == (("test.fast", "takes dtype bfloat16, not float32"),)


def test_the_table_groups_equal_reasons() -> None:
    text = str(quanto.explain(quanto.freeze(quanto.quantize(_model(), "int8").bfloat16())))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "module", "scheme", "kernel"]
    assert set(lines[1]) == {"-", " "}
    assert [line.split()[0] for line in lines[2:5]] == ["even", "odd", "also_odd"]
    assert lines[5] == ""
    assert lines[6] == "odd and 1 more: test.fast: needs an even number of rows"
    assert len({line.index("QLinear") for line in lines[2:5]}) == 1, "columns are aligned"


def test_it_is_data_too() -> None:
    made = json.loads(json.dumps(quanto.explain(quanto.freeze(quanto.quantize(_model(), "int8"))).to_dict()))
    assert [layer["name"] for layer in made["layers"]] == ["even", "odd", "also_odd"]
    assert made["layers"][0]["refused"] == [["test.fast", "takes dtype bfloat16, not float32"]]


def test_models_without_quantized_layers() -> None:
    assert str(quanto.explain(_model())) == "no quantized layers"
    assert quanto.explain(_model()).layers == ()


def test_a_lone_module_is_the_root() -> None:
    text = str(quanto.explain(quanto.freeze(quanto.quantize(nn.Linear(32, 15, dtype=torch.bfloat16), "int8"))))
    assert text.splitlines()[2].startswith("(root)")
    assert "(root): test.fast: needs" in text


def test_layers_that_are_not_frozen_say_so() -> None:
    found = _reports(quanto.quantize(_model(), "int4", include="odd"))
    assert found["odd"].kernel == "fake quantization"
    assert "quanto.freeze(model) turns them into codes" in found["odd"].note


def test_layers_left_floating_say_why() -> None:
    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    model = nn.Sequential(Own(4, 4), nn.Linear(4, 4))
    report = _reports(quanto.quantize(model, "int8"))["0"]
    assert (report.kernel, report.scheme, report.bytes) == ("", "", 0)
    assert report.note == "stays floating: Own has a forward of its own, which quantizing would replace"
    line = next(line for line in str(quanto.explain(model)).splitlines() if line.startswith("0"))
    assert line.split() == ["0", "Own", "float", "-"]


def test_activations_are_dynamic_until_calibrated() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 8))
    quanto.quantize(model, "int8", "int8")
    before = _reports(quanto.freeze(quanto.quantized(model, "int8", "int8")))
    assert before["0"].scheme == "int8 x int8 dynamic"
    assert before["0"].kernel == "reference.scaled_linear"
    assert before["0"].refused == (), "no kernel here is made for quantized activations"
    assert (before["1"].kernel, before["1"].note) == ("torch", "computes in float; its output is not quantized")
    with quanto.Calibration(), torch.no_grad():
        model(torch.randn(4, 32))
    after = _reports(quanto.freeze(model))
    assert after["0"].scheme == "int8 x int8 static"
    assert after["1"].note == ""
    static = quanto.freeze(quanto.quantize(nn.Linear(4, 4), scheme="w8a8-static"))
    assert _reports(static)[""].scheme == "int8 x int8 static"


@pytest.mark.parametrize(
    ("build", "rule", "kernel"),
    [
        (lambda: nn.Embedding(8, 32), "int8", "reference.embedding"),
        (lambda: nn.Conv1d(4, 4, 3), "int8", "reference.dequantize"),
        (lambda: nn.MultiheadAttention(8, 2), "int4", "reference.dequantize"),
        (lambda: nn.Bilinear(8, 8, 4), quanto.Rule("", quanto.Scheme("int8"), ("weight",)), "reference.dequantize"),
    ],
)
def test_each_kind_of_module_asks_its_own_operator(build: Any, rule: Any, kernel: str) -> None:
    rules = [rule] if isinstance(rule, quanto.Rule) else {"": rule}
    assert _reports(quanto.freeze(quanto.quantize(build(), rules=rules)))[""].kernel == kernel


def test_distrusted_and_blocked_kernels_are_listed() -> None:
    model = quanto.freeze(quanto.quantize(nn.Linear(32, 16, dtype=torch.bfloat16), "int8"))
    with kernels.select("-test.fast"):
        report = _reports(model)[""]
    assert report.kernel == "test.slow"
    assert report.refused == (("test.fast", "blocked by QUANTO_KERNELS or quanto.kernels.select"),)
    with kernels.select("reference.linear"):
        assert _reports(model)[""].kernel == "reference.linear"
