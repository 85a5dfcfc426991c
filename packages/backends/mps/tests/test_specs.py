# SPDX-License-Identifier: Apache-2.0
"""quanto's conformance suite over every kernel: natively on an Apple GPU, elsewhere through the shim.

Every check meets every kind of weight; of the dtypes, granularities and zero points of one kind each check takes some,
in an order that has nothing to do with theirs. `QUANTO_MPS_CASES=1000` takes all.
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
from quanto.kernels import KernelSpec, kernels
from quanto.plugins import plugins
from quanto.testing.cases import Case
from quanto.testing.checks import Check
from quanto.testing.run import plan
from quanto_backend_mps.specs import specs

DEVICE = "mps" if torch.backends.mps.is_available() else "cpu"
LIMIT = int(os.environ.get("QUANTO_MPS_CASES", "2"))
# What does not depend on the kind of weight: one case a kernel.
ONCE = {"compiles_once", "serves_several_threads", "has_a_meaningful_tolerance"}


def local(spec: KernelSpec) -> KernelSpec:
    """The kernel as one of the device that runs the tests."""
    return replace(spec, device=DEVICE)


def chosen(spec: KernelSpec) -> Iterator[tuple[Check, Case]]:
    found = sorted(plan(spec, DEVICE), key=lambda pair: zlib.crc32(f"{pair[0].name} {pair[1]}".encode()))
    taken: Counter[tuple[str, str]] = Counter()
    for check, case in found:
        key = check.name, "" if check.name in ONCE else case.first.qtype
        if taken[key] < (1 if check.name in ONCE else LIMIT):
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
    assert all(kernels.specs[spec.name].origin == "quanto-backend-mps" for spec in specs())


@pytest.mark.skipif(DEVICE == "mps", reason="here the kernels run")
def test_without_metal_everything_is_as_before() -> None:
    layer = quanto.freeze(quanto.quantize(torch.nn.Linear(64, 32), "int4"))
    explained = quanto.explain(layer).layers[0]
    assert not explained.kernel.startswith("mps.")
    with torch.no_grad():
        assert layer(torch.randn(2, 64)).shape == (2, 32)
