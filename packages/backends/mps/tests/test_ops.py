# SPDX-License-Identifier: Apache-2.0
"""Which kernel runs for what, weights decoded by parts, indices that don't exist, and errors that name the argument."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from quanto import reference
from quanto.kernels import Request
from quanto.kernels.problems import arguments, random_weight
from quanto.kernels.selfcheck import check
from quanto.qtypes import get_qtype
from quanto_backend_mps import library
from quanto_backend_mps.ops import dense, linear
from quanto_backend_mps.specs import specs

OPERATORS = {spec.op: spec.fn for spec in specs()}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that run."""
    names: list[str] = []

    def launch(family: str, kernel: str, *rest: Any) -> None:
        names.append(kernel)
        library.launch(family, kernel, *rest)

    for module in (dense, linear):
        monkeypatch.setattr(module, "launch", launch)
    return names


def problem(
    op: str, device: str, qtype: str = "int4", block: tuple[int, ...] = (1, 32), shape: tuple[int, int] = (48, 96),
    tokens: int = 3, dtype: torch.dtype = torch.float32,
) -> list[Any]:  # fmt: skip
    """Arguments of an operator."""
    request = Request(op, "cpu", dtype, qtype, block, shape, torch.float32)
    generator = torch.Generator().manual_seed(1)
    given, _ = arguments(request, random_weight(request, generator), tokens, generator)
    return [g.to(device) if isinstance(g, Tensor) else g for g in given]


@pytest.mark.parametrize(
    ("tokens", "shape", "block", "kernel"),
    [
        (1, (48, 96), (1, 32), "gemv1_int4_f32"),
        (2, (48, 96), (1, 32), "gemv4_int4_f32"),
        (5, (48, 96), (1, 32), "gemv16_int4_f32"),
        (16, (48, 96), (1, 96), "gemv16_int4_f32"),
        (17, (48, 96), (1, 32), "gemm_int4_f32"),
        (1, (48, 97), (1, 32), "gemm_int4_f32"),  # rows that are no whole words
        (1, (48, 96), (1, 16), "gemm_int4_f32"),  # groups within a unit
        (256, (48, 96), (1, 32), "gemm_int4_f32"),
        (257, (48, 96), (1, 32), "dequantize_int4_f32"),
    ],
)
def test_tokens_choose_the_kernel(
    launched: list[str], device: str, tokens: int, shape: tuple[int, int], block: tuple[int, int], kernel: str
) -> None:
    given = problem("linear", device, block=block, shape=shape, tokens=tokens)
    got = OPERATORS["linear"](*given)
    assert launched == [kernel]
    cpu = [g.cpu() if isinstance(g, Tensor) else g for g in given]
    torch.testing.assert_close(got.cpu(), reference.linear(*cpu), rtol=1e-4, atol=1e-5)


def test_misaligned_weights_take_the_kernel_that_reads_bytes(launched: list[str], device: str) -> None:
    given = problem("linear", device)
    codes = given[1]
    given[1] = torch.empty(codes.numel() + 1, dtype=torch.uint8, device=device)[1:].view(codes.shape).copy_(codes)
    OPERATORS["linear"](*given)
    assert launched == ["gemm_int4_f32"]


@pytest.mark.parametrize("block", [(1, 32), (1, 96), (16, 24), ()])
@pytest.mark.parametrize("op", ["linear", "linear_input_grad"])
def test_large_weights_are_decoded_by_parts(
    launched: list[str], monkeypatch: pytest.MonkeyPatch, device: str, op: str, block: tuple[int, ...]
) -> None:
    """Each part at most `_PART` elements, or one row of blocks or eight columns."""
    monkeypatch.setattr(dense, "_PART", 1000)
    given = problem(op, device, "int8", block, tokens=300)
    got = OPERATORS[op](*given)
    parts = {"linear": 1 if not block else 3 if block[0] == 16 else 5, "linear_input_grad": 6}[op]
    assert launched == ["dequantize_int8_f32"] * parts
    cpu = [g.cpu() if isinstance(g, Tensor) else g for g in given]
    torch.testing.assert_close(got.cpu(), getattr(reference, op)(*cpu), rtol=1e-4, atol=1e-5)


def test_decoded_values_are_those_of_the_reference(device: str) -> None:
    """To the bit in float32: the same two operations."""
    for qtype in ("int8", "int4", "int3", "int2", "nf4", "fp4", "float8_e4m3fn", "float8_e5m2"):
        given = problem("dequantize", device, qtype)
        cpu = [g.cpu() if isinstance(g, Tensor) else g for g in given]
        assert torch.equal(OPERATORS["dequantize"](*given).cpu(), reference.dequantize(*cpu)), qtype


@pytest.mark.parametrize("qtype", ["float8_e4m3fn", "float8_e5m2"])
def test_every_float8_is_decoded(device: str, qtype: str) -> None:
    """All 256 codes, NaN, infinity and subnormals among them."""
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256)
    want = codes.view(getattr(torch, qtype)).float()
    got = OPERATORS["dequantize"](
        codes.to(device), torch.ones(1, 1, device=device), None, None, qtype, [1, 256], 256, torch.float32
    ).cpu()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(7.0, 3e38, -3e38), want.nan_to_num(7.0, 3e38, -3e38))


@pytest.mark.parametrize("qtype", ["nf4", "fp4", "float8_e4m3fn", "float8_e5m2", "int8", "int4", "int3", "int2"])
def test_ties_and_ends_round_as_the_reference_does(device: str, qtype: str) -> None:
    """Every middle between two values, what lies on either side of it, and what no value reaches."""
    every = torch.arange(2 ** {"int3": 3, "int2": 2}.get(qtype, 4 if qtype[-1] == "4" else 8), dtype=torch.uint8)
    values = reference.decode(every.view(get_qtype(qtype).storage), get_qtype(qtype))
    values = values[values.isfinite()].sort().values
    middles = (values[1:] + values[:-1]) / 2
    ends = torch.tensor([1e30, -1e30, torch.inf, -torch.inf, torch.nan, 0.0])
    up, down = (torch.nextafter(middles, torch.full_like(middles, end)) for end in (torch.inf, -torch.inf))
    x = torch.cat([values, middles, up, down, ends]).unsqueeze(0)
    x = x[:, (x.abs() > 1e-37)[0] | (x == 0)[0] | x.isnan()[0]]  # subnormals are flushed
    size = x.shape[1]
    given = (x, torch.ones(1, 1), None, None, qtype, [1, size])
    want = reference.quantize(*given)
    got = OPERATORS["quantize"](x.to(device), torch.ones(1, 1, device=device), *given[2:]).cpu()
    zeros = torch.zeros(1, size)
    decoded = [
        reference.dequantize(c, torch.ones(1, 1), None, None, qtype, [1, size], size, torch.float32)
        for c in (got, want)
    ]
    assert torch.equal(decoded[0].isnan(), decoded[1].isnan())
    assert torch.equal(
        torch.where(decoded[0].isnan(), zeros, decoded[0]), torch.where(decoded[1].isnan(), zeros, decoded[1])
    )


def test_an_index_that_the_table_lacks_gives_nan(device: str) -> None:
    given = problem("embedding", device)
    given[0] = torch.tensor([0, -1, 47, 48], device=device)
    assert OPERATORS["embedding"](*given).isnan().any(1).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("op", "argument", "value", "words"),
    [
        ("linear", 0, torch.zeros(3, 96, dtype=torch.int32), "x must be float32"),
        ("linear", 0, torch.zeros(3, 93), "x has 93 features"),
        ("linear", 1, torch.zeros(48, 48, dtype=torch.int8), "codes must be torch.uint8"),
        ("linear", 2, torch.zeros(48, 2), "scale must have shape (48, 3)"),
        ("linear", 3, torch.zeros(48, 1), "zero_point must have shape (48, 3)"),
        ("linear", 5, torch.zeros(47), "bias must have shape (48,)"),
        ("linear_input_grad", 0, torch.zeros(3, 47), "grad has 47 features"),
        ("dequantize", 1, torch.zeros(()), "scale must have shape"),
        ("unpack", 2, 99, "99 codes of 4 bits need 50"),
        ("quantize", 1, torch.zeros(48, 2), "scale must have shape (48, 3)"),
    ],
)
def test_what_does_not_fit_is_named(device: str, op: str, argument: int, value: object, words: str) -> None:
    given = problem(op, device)
    given[argument] = value.to(device) if isinstance(value, Tensor) else value
    with pytest.raises((TypeError, ValueError), match=words.replace("(", r"\(").replace(")", r"\)")):
        OPERATORS[op](*given)


@pytest.mark.parametrize("op", ["linear", "scaled_linear", "linear_input_grad"])
def test_another_device_is_named(op: str, device: str) -> None:
    given = problem(op, device, "int8") if op != "scaled_linear" else _scaled(device)
    at = {"linear": 5, "scaled_linear": 6, "linear_input_grad": 0}[op]
    given[at] = given[at].to("meta")
    with pytest.raises(ValueError, match="is on meta"):
        getattr(dense if op == "linear_input_grad" else linear, op)(*given)


def _scaled(device: str) -> list[Any]:
    request = Request("scaled_linear", "cpu", torch.float32, "int8", (1, 96), (48, 96), activations="int8")
    generator = torch.Generator().manual_seed(1)
    given, _ = arguments(request, random_weight(request, generator), 3, generator)
    return [g.to(device) if isinstance(g, Tensor) else g for g in given]


def test_layers_without_features_give_their_bias(device: str) -> None:
    codes, scale = torch.empty(4, 0, dtype=torch.uint8, device=device), torch.empty(4, 0, device=device)
    x, bias = torch.empty(2, 0, device=device), torch.arange(4.0, device=device)
    y = OPERATORS["linear"](x, codes, scale, None, None, bias, "int4", [1, 1])
    assert torch.equal(y, bias.expand(2, 4))


def test_shaders_that_do_not_compile_are_replaced(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """As on a chip or a system that refuses one: the self check at first use says so, and the reference answers."""

    def refuse(source: str) -> None:
        raise SyntaxError("program_source:1:1: error: unknown type name 'packed_uint4'")

    monkeypatch.setattr(torch.mps, "compile_shader", refuse)
    monkeypatch.setattr(library, "_compiled", {})
    spec = next(s for s in specs() if s.op == "linear")
    request = Request("linear", device, torch.float32, "int4", (1, 32), (48, 96))
    said = check(replace(spec, device=device), request, None, reference.linear)
    assert said is not None
    assert "unknown type name" in said


def test_shaders_that_lie_are_found(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    def launch(family: str, kernel: str, tensors: Any, *rest: Any) -> None:
        library.launch(family, kernel, tensors, *rest)
        tensors[-1][..., -1] += 1

    monkeypatch.setattr(linear, "launch", launch)
    spec = next(s for s in specs() if s.op == "linear")
    request = Request("linear", device, torch.float32, "int4", (1, 32), (48, 96))
    assert "the reference has" in str(check(replace(spec, device=device), request, None, reference.linear))
