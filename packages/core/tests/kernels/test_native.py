# SPDX-License-Identifier: Apache-2.0
"""torch's own kernels against the reference, elementwise, wherever this machine lets them run."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import quanto
from quanto import reference
from quanto.kernels import KernelSpec, Request, kernels
from quanto.kernels import spec as claims
from quanto.kernels.problems import arguments, compare, compare_result, default_tolerance, random_weight
from quanto.plugins import plugins

plugins.load()
NATIVE = [spec for spec in kernels.specs.values() if spec.name.startswith("torch.")]
SHAPES = [(16, 32), (64, 64), (7, 8), (48, 256), (129, 136), (1, 24), (192, 640), (33, 48)]
BY_NAME = [pytest.param(s, id=s.name, marks=[pytest.mark.gpu] if s.device == "cuda" else []) for s in NATIVE]


def _requests(spec: KernelSpec) -> list[Request]:
    """Every request of a few shapes and groups that the kernel claims."""
    found = []
    for shape, dtype, zero in itertools.product(SHAPES, sorted(spec.dtypes, key=str), sorted(spec.zero_points)):
        for blocks in ((1, shape[1]), (1, 32), (1, 64)):
            if blocks[1] <= shape[1]:
                for qtype, acts in itertools.product(sorted(spec.qtypes), sorted(spec.activations)):
                    layout = spec.layout
                    scale = torch.bfloat16 if torch.bfloat16 in spec.scale_dtypes else torch.float32
                    request = Request(
                        spec.op, spec.device, dtype, qtype, blocks, shape, scale, zero, layout, activations=acts
                    )
                    if spec.refusal(request) is None:
                        found.append(request)
    return found


def _solve(spec: KernelSpec, request: Request, tokens: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(tokens)
    weight = tuple(None if t is None else t.to(request.device) for t in random_weight(request, generator))
    args, at = arguments(request, weight, tokens, generator)  # type: ignore[arg-type]
    want = kernels.specs[f"reference.{spec.op}"].fn(*args)
    layout = kernels.layouts.get(spec.layout)
    if layout is not None:
        args[at : at + 4] = layout.pack(weight, request.qtype, request.block_size, request.shape[-1])
    return spec.fn(*args), want


@pytest.mark.parametrize("spec", BY_NAME)
@pytest.mark.parametrize("tokens", [0, 1, 5, 16, 17, 40, 130])
def test_equals_the_reference(spec: KernelSpec, tokens: int) -> None:
    requests = _requests(spec)
    if not requests:
        reason = spec.refusal(
            Request(spec.op, spec.device, torch.bfloat16, next(iter(spec.qtypes)), (1, 64), (64, 64), torch.bfloat16)
        )
        pytest.skip(f"{spec.name} {reason}")
    for request in requests:
        got, want = _solve(spec, request, tokens)
        assert compare(got, want, default_tolerance(request.dtype)) is None, str(request)


@pytest.mark.parametrize(("capability", "step"), [("AVX2", 8), ("AVX512", 16), ("DEFAULT", 8)])
@pytest.mark.parametrize("size", [4, 12, 20, 24, 28, 36, 68, 132, 136, 260])
def test_int8pack_refuses_what_crashes_it(
    size: int, capability: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    request = Request("linear", "cpu", torch.bfloat16, "int8", (1, size), (16, size), torch.bfloat16)
    refusal = kernels.specs["torch.int8pack"].refusal(request)
    if size % step:
        assert f"multiple of {step}, not {size}" in str(refusal)
        assert kernels.choose(request).spec.name == "reference.linear"
    else:
        assert refusal is None


def test_int_mm_needs_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("scaled_linear", "cpu", torch.float32, "int8", (1, 64), (64, 64), activations="int8")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    assert "VNNI" in str(kernels.specs["torch.int_mm.cpu"].refusal(request))


@pytest.mark.parametrize("zero", ["none", "int"])
@pytest.mark.parametrize("shape", [(16, 32), (48, 256), (192, 640)])
def test_int4pack_layout_goes_back_bit_for_bit(shape: tuple[int, int], zero: str) -> None:
    request = Request("linear", "cpu", torch.bfloat16, "int4", (1, 32), shape, torch.bfloat16, zero)
    layout = kernels.layouts["torch.int4pack"]
    weight = random_weight(request, torch.Generator().manual_seed(0))
    back = layout.unpack(layout.pack(weight, "int4", (1, 32), shape[1]), "int4", (1, 32), shape[1])
    for before, after in zip(weight, back, strict=True):
        assert (before is None and after is None) or torch.equal(before, after)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "group", "rows", "fragment"),
    [(576, 96, 64, "groups of 32, 64, 128 or 256"), (128, 64, 24, "multiple of 16")],
)
def test_int4pack_says_what_it_cannot_take(size: int, group: int, rows: int, fragment: str) -> None:
    request = Request("linear", "cpu", torch.bfloat16, "int4", (1, group), (rows, size), torch.bfloat16)
    assert fragment in str(kernels.specs["torch.int4pack"].refusal(request))


@pytest.mark.parametrize("spec", BY_NAME)
def test_static_output_is_rescaled_to_codes(spec: KernelSpec) -> None:
    if spec.op != "scaled_linear":
        pytest.skip("only for quantized activations")
    requests = [r for r in _requests(spec) if r.dtype == torch.bfloat16]
    for request in requests[:3]:
        generator = torch.Generator().manual_seed(3)
        weight = tuple(None if t is None else t.to(request.device) for t in random_weight(request, generator))
        args, _ = arguments(request, weight, 9, generator)  # type: ignore[arg-type]
        args[1] = torch.tensor(0.02, device=request.device)
        args[-3] = torch.tensor(0.1, device=request.device)
        want, got = kernels.specs["reference.scaled_linear"].fn(*args), spec.fn(*args)
        assert got.dtype == want.dtype
        if spec.qtypes == {"int8"}:
            assert torch.equal(got, want)


# -- kernels of GPUs, as far as a CPU can say --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("torch.int_mm.cuda", (64, 64), None),
        ("torch.int_mm.cuda", (60, 64), "needs in_features and out_features that are multiples of 8 (here 64 and 60)"),
        ("torch.int_mm.cuda", (64, 60), "multiples of 8 (here 60 and 64)"),
        ("torch.scaled_mm.cuda", (32, 64), None),
        ("torch.scaled_mm.cuda", (24, 64), "multiples of 16 (here 64 and 24)"),
        ("torch.scaled_mm.cuda", (32, 72), "multiples of 16 (here 72 and 32)"),
    ],
)
def test_gpu_kernels_say_what_they_cannot_take(
    name: str, shape: tuple[int, int], sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "device_capability", lambda device: (9, 0))
    spec = kernels.specs[name]
    qtype = next(iter(spec.qtypes))
    request = Request(spec.op, "cuda", torch.bfloat16, qtype, (1, shape[1]), shape, activations=qtype)
    refusal = spec.refusal(request)
    assert refusal is None if sentence is None else str(refusal).endswith(sentence)
    assert not str(refusal).startswith("torch."), "the kernel's name is said before it"


def test_float8_needs_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "device_capability", lambda device: (8, 0))
    e4m3 = "float8_e4m3fn"
    request = Request("scaled_linear", "cuda", torch.bfloat16, e4m3, (1, 64), (32, 64), activations=e4m3)
    assert kernels.specs["torch.scaled_mm.cuda"].refusal(request) == "needs compute capability 8.9, this device has 8.0"


def test_int_mm_without_vnni_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("scaled_linear", "cpu", torch.float32, "int8", (1, 64), (32, 64), activations="int8")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    assert "32 times slower" in str(kernels.specs["torch.int_mm.cpu"].refusal(request))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    assert kernels.specs["torch.int_mm.cpu"].refusal(request) is None


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 17, 40])
@pytest.mark.parametrize(("op", "qtype"), [("int_mm", "int8"), ("scaled_mm", "float8_e4m3fn")])
def test_wrappers_of_gpu_kernels_compute_right(op: str, qtype: str, tokens: int, static: bool) -> None:
    """torch has both products on the CPU too: slow, but the same."""
    call = getattr(torch.ops.quanto_core, f"scaled_linear_{op}").default
    request = Request("scaled_linear", "cpu", torch.bfloat16, qtype, (1, 64), (32, 64), activations=qtype)
    generator = torch.Generator().manual_seed(tokens)
    args, _ = arguments(request, random_weight(request, generator), tokens, generator)
    if static:
        args[1] = torch.tensor(0.02)
    if op == "scaled_mm" and tokens:
        try:
            call(*args)
        except RuntimeError as error:  # torch 2.11
            if "only supports per-tensor scaling for CPU" not in str(error):
                raise
            pytest.skip("torch._scaled_mm of this torch takes no scale per row on a CPU")
    tolerance = default_tolerance(torch.bfloat16)
    for bias in (args[6], None):
        args[6], args[-3] = bias, None
        assert compare_result(request, args, call(*args), reference.scaled_linear(*args), tolerance) is None
        args[-3] = torch.tensor(0.1)
        got, want = call(*args), reference.scaled_linear(*args)
        assert got.dtype == want.dtype
        if op == "int_mm":
            assert compare_result(request, args, got, want, tolerance) is None
        else:  # its sums were rounded to bfloat16 before: three steps of three bits at most
            assert (_values(got) - _values(want)).abs().max() <= 0.13 * _values(want).abs().max() if tokens else True


def _values(codes: torch.Tensor) -> torch.Tensor:
    return reference.decode(codes, quanto.qtypes["float8_e4m3fn"])
