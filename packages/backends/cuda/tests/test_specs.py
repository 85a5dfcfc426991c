# SPDX-License-Identifier: Apache-2.0
"""quanto's conformance suite over every kernel: on a GPU a case per kernel, check and qtype, in the interpreter fewer.

The whole suite is 16000 cases, nearly all of them compilation: `pytest --pyargs quanto.testing --backend
quanto-backend-cuda`.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import quanto
from quanto.kernels import KernelSpec, Request, kernels
from quanto.plugins import plugins
from quanto.testing.cases import Case
from quanto.testing.checks import Check
from quanto.testing.run import plan
from quanto_backend_cuda.ops import linear
from quanto_backend_cuda.specs import specs

GPU = torch.cuda.is_available()
# Cases per kernel and check (on a GPU: and qtype). The interpreter takes a second for what a GPU does in microseconds.
LIMIT = int(os.environ.get("QUANTO_CUDA_CASES", "1"))
SLOW = {"compiles_once", "serves_several_threads", "agrees_on_any_shape"}


def local(spec: KernelSpec) -> KernelSpec:
    """The kernel as one of the device that runs the tests."""
    return spec if GPU else replace(spec, device="cpu", min_capability=None)


def chosen(spec: KernelSpec) -> Iterator[tuple[Check, Case]]:
    found = list(plan(spec, "cuda" if GPU else "cpu"))
    if GPU:  # in an order that has nothing to do with theirs, so that dtypes and granularities take turns
        found.sort(key=lambda pair: zlib.crc32(f"{pair[0].name} {pair[1]}".encode()))
    taken: Counter[tuple[str, str]] = Counter()
    for check, case in found:
        key = check.name, case.first.qtype if GPU else ""
        if taken[key] >= LIMIT or (not GPU and check.name in SLOW and case.first.dtype != torch.float16):
            continue
        taken[key] += 1
        yield check, case


def cases() -> list[object]:
    plugins.load()
    found = [(check, case) for spec in specs() for check, case in chosen(local(spec))]
    return [pytest.param(check, case, id=f"{case}: {check.name}") for check, case in found]


@pytest.mark.parametrize(("check", "case"), cases())
def test_conforms(check: Check, case: Case) -> None:
    check.run(case)


def test_the_plugin_registers_every_kernel() -> None:
    plugins.load()
    assert {spec.name for spec in specs()} <= set(kernels.specs)
    assert all(kernels.specs[spec.name].origin == "quanto-backend-cuda" for spec in specs())


def test_kernels_without_their_instructions_refuse() -> None:
    found = {spec.name: spec.min_capability for spec in specs() if spec.min_capability is not None}
    assert found == {"cuda.scaled_linear_float8": (8, 9)}


@pytest.mark.parametrize(
    ("qtype", "dtype", "alone"),
    [("int4", torch.bfloat16, True), ("nf4", torch.float16, True), ("mxfp4", torch.bfloat16, False),
     ("int4", torch.float32, False), ("int3", torch.bfloat16, False)],
)  # fmt: skip
def test_on_hopper_first_results_are_compared_without_a_self_check(
    qtype: str, dtype: torch.dtype, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernels in Gluon take any number of tokens: int3 has none for many."""
    w = quanto.quantize_tensor(torch.randn(32, 256, dtype=torch.float32), qtype)
    request = Request("linear", "cuda", dtype, qtype, tuple(w.block_size), (32, 256), dtype)
    if not torch.cuda.is_available():
        assert not linear.checks_itself(request)
    for name, value in (("interpreted", False), ("gluon", True), ("warpgroups", True)):
        monkeypatch.setattr(linear, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert linear.checks_itself(request) is alone
    monkeypatch.setattr(linear, "warpgroups", lambda device: False)
    assert not linear.checks_itself(request)
