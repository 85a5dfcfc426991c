# SPDX-License-Identifier: Apache-2.0
"""What the suite asks, and that the reference kernels pass it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quanto.kernels import KernelSpec, Request, kernels
from quanto.plugins import plugins
from quanto.qtypes import qtypes
from quanto.testing import CHECKS, cases, failures
from quanto.testing.problem import make, names
from quanto.testing.run import chosen, devices, plan

plugins.load()
REFERENCES = [spec for spec in kernels.specs.values() if spec.reference]
CLAIM = KernelSpec(
    "asked", "linear", "cpu", torch.ops.quanto_core.linear.default, frozenset({"int4", "nf4", "mxfp4"}),
    zero_points=frozenset({"none", "int"}),
)  # fmt: skip


@pytest.mark.parametrize("spec", REFERENCES, ids=lambda spec: spec.name)
def test_the_references_conform(spec: KernelSpec) -> None:
    """One qtype of each kind; `pytest --pyargs quanto.testing --backend quanto-core` asks for all."""
    few = {"dtypes": frozenset({torch.float32}), "zero_points": frozenset({"none", "int"})}
    activations = frozenset({"int8"} if spec.op == "scaled_linear" else {""})
    granularity = frozenset({"tensor"} if spec.op == "dynamic_quantize" else {"channel", "group"})
    narrow = replace(spec, device="cpu", qtypes=frozenset({"int3", "int8", "mxfp4"}), granularities=granularity)
    assert failures(replace(narrow, activations=activations, **few)) == []


def test_every_operator_has_problems() -> None:
    for spec in REFERENCES:
        found = cases(spec, "cpu")
        assert found, spec.op
        assert list(make(found[0].first, 3).given) == names(spec.op)


def test_only_what_is_claimed_is_asked() -> None:
    found = cases(CLAIM, "cpu")
    requests = [request for case in found for request in case.requests]
    assert all(CLAIM.refusal(request) is None for request in requests)
    assert {r.qtype for r in requests} == {"int4", "nf4"}, "the scales of mxfp4 are e8m0, which is not claimed"
    assert {r.zero_point for r in requests if r.qtype == "nf4"} == {"none"}, "only integers have zero points"
    assert {r.dtype for r in requests} == {torch.float32, torch.float16, torch.bfloat16}


def test_formats_that_fix_their_scale_are_asked_as_they_are() -> None:
    spec = replace(CLAIM, qtypes=frozenset({"mxfp4"}), scale_dtypes=frozenset({torch.float8_e8m0fnu}))
    requests = [request for case in cases(spec, "cpu") for request in case.requests]
    assert requests
    assert {(r.block_size[-1], r.scale_dtype) for r in requests} == {(32, torch.float8_e8m0fnu)}


def test_shapes_are_ragged_and_scales_vary() -> None:
    spec = replace(CLAIM, qtypes=frozenset({"int4"}), granularities=frozenset({"group"}))
    requests = [request for case in cases(spec, "cpu") for request in case.requests]
    assert any(r.shape[-1] % r.block_size[-1] for r in requests), "a short last group"
    assert {r.block_size[-1] for r in requests} >= {32, 64, 128}
    assert len({r.scale_dtype for r in requests}) == 3


def test_each_case_is_of_one_kind_and_has_its_own_name() -> None:
    for spec in (CLAIM, *REFERENCES):
        found = cases(spec, "cpu")
        assert len({str(case) for case in found}) == len(found)
        for case in found:
            kinds = {(r.qtype, r.dtype, r.granularity, r.zero_point, r.activations) for r in case.requests}
            assert len(kinds) == 1


def test_costly_checks_run_once_a_qtype() -> None:
    planned = [(check.name, case.first.qtype) for check, case in plan(CLAIM, "cpu")]
    assert planned.count(("compiles_once", "int4")) == 1
    assert planned.count(("agrees_elementwise", "int4")) > 1
    assert {name for name, _ in planned} < set(CHECKS)


def test_kernels_are_chosen_by_name_and_by_distribution() -> None:
    assert [s.name for s in chosen(["reference.linear"])] == ["reference.linear"]
    assert {s.name for s in chosen(["quanto-core"])} >= {s.name for s in REFERENCES}
    assert not any(s.reference for s in chosen([]))
    with pytest.raises(ValueError, match=r"no kernel and no distribution 'nothing'; known: .*quanto-core"):
        chosen(["nothing"])


def test_a_missing_device_runs_nothing() -> None:
    assert devices(replace(CLAIM, device="nothing")) == []
    assert devices(CLAIM) == ["cpu"]
    assert "cpu" in devices(REFERENCES[0])
    assert devices(REFERENCES[0], "cpu") == ["cpu"]


def test_no_qtype_is_forgotten() -> None:
    (linear,) = (spec for spec in REFERENCES if spec.op == "linear")
    assert {case.first.qtype for case in cases(linear, "cpu")} == set(qtypes)


def test_a_dynamic_quantization_is_asked_as_layers_ask() -> None:
    (spec,) = (spec for spec in REFERENCES if spec.op == "dynamic_quantize")
    request = next(case.first for case in cases(spec, "cpu") if case.first.qtype == "int8")
    assert request == Request.parse("dynamic_quantize", "int8;;;float32;none;canonical", "cpu", request.dtype)
