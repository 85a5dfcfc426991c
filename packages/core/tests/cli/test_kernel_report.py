# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can run a kernel, and the sentence why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quanto.cli import kernel_report
from quanto.cli.kernel_report import KernelReport, kernel_reports
from quanto.kernels import KernelRegistry, KernelSpec, Request, references, spec


def linear(*arguments: Any) -> None: ...


def registry_with(*specs: KernelSpec) -> KernelRegistry:
    registry = KernelRegistry()
    references.register(registry)
    with registry.transaction("acme"):
        for one in specs:
            registry.register(one)
    return registry


def report(op: str = "linear", device: str = "cpu", qtypes: tuple[str, ...] = ("int4",), **claims: Any) -> KernelReport:
    """The report of one kernel of a distribution "acme"."""
    registry = registry_with(KernelSpec("acme.kernel", op, device, linear, frozenset(qtypes), **claims))
    return next(k for k in kernel_reports(registry) if k.name == "acme.kernel")


def refuse_unless(condition: Callable[[Request], bool]) -> dict[str, Any]:
    return {"refuse": lambda request: None if condition(request) else "not\n these"}


def test_the_claims_are_names() -> None:
    found = report(qtypes=("nf4", "int4"), dtypes=frozenset({torch.bfloat16, torch.float16}), priority=70)
    assert (found.op, found.device, found.priority, found.origin) == ("linear", "cpu", 70, "acme")
    assert found.qtypes == ("int4", "nf4")
    assert found.activations == ("floating",)
    assert found.dtypes == ("bfloat16", "float16")
    assert found.granularities == ("channel", "group")
    assert (found.ready, found.status, found.selected) == (True, "ready", "")


def test_a_reference_takes_everything() -> None:
    found = {k.op: k for k in kernel_reports(registry_with())}["embedding"]
    assert found.qtypes is found.activations is found.dtypes is found.scale_dtypes is None
    assert found.ready


def test_the_order_is_that_in_which_kernels_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTO_KERNELS", "acme.slow")
    names = {"acme.slow": 10, "acme.fast": 100, "acme.faster": 200}
    specs = [KernelSpec(name, "linear", "cpu", linear, {"int4"}, priority=p) for name, p in names.items()]
    found = [k for k in kernel_reports(registry_with(*specs)) if k.op == "linear"]
    assert [k.name for k in found] == ["acme.slow", "acme.faster", "acme.fast", "reference.linear"]
    assert [k.selected for k in found] == ["forced", "", "", ""]


@pytest.mark.parametrize("text", ["-acme.kernel", "-acme"])
def test_a_blocked_kernel(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("QUANTO_KERNELS", text)
    found = report()
    assert (found.ready, found.selected) == (False, "blocked")
    assert found.status.startswith("blocked by QUANTO_KERNELS")


def test_a_kernel_that_failed_its_self_check() -> None:
    registry = registry_with(KernelSpec("acme.kernel", "linear", "cpu", linear, {"int4"}))
    with pytest.warns(RuntimeWarning):
        registry.distrust("acme.kernel", "element [0] is 1, the reference has 2")
    found = next(k for k in kernel_reports(registry) if k.name == "acme.kernel")
    assert not found.ready
    assert found.status == "failed its self check: element [0] is 1, the reference has 2"
    assert found.selected == ""


def test_a_device_that_is_not_here() -> None:
    assert report(device="abacus").status == "no abacus device here"


@pytest.mark.parametrize(
    ("found", "status"), [((7, 5), "needs compute capability 8.9, this device has 7.5"), ((9, 0), "ready")]
)
def test_the_capability(monkeypatch: pytest.MonkeyPatch, found: tuple[int, int], status: str) -> None:
    monkeypatch.setattr(spec, "device_capability", lambda device: found)
    assert report(min_capability=(8, 9)).status == status


@pytest.mark.parametrize(
    "claims",
    [
        refuse_unless(lambda r: r.shape[-1] % 256 == 0),
        refuse_unless(lambda r: r.group_size == 32),
        refuse_unless(lambda r: r.granularity == "channel"),
        refuse_unless(lambda r: r.qtype == "int8"),
        refuse_unless(lambda r: r.dtype == torch.float16 and r.scale_dtype == torch.bfloat16),
        {"granularities": {"block"}, **refuse_unless(lambda r: r.block_size == (128, 128))},
        {"granularities": {"tensor"}, **refuse_unless(lambda r: r.block_size == ())},
        {"op": "grouped_linear", **refuse_unless(lambda r: len(r.shape) == len(r.block_size) == 3)},
        {"op": "scaled_linear", "activations": {"int8"}, **refuse_unless(lambda r: r.activations == "int8")},
        {"op": "dynamic_quantize", "granularities": {"tensor"}, **refuse_unless(lambda r: r.shape == ())},
        {"device": "any", **refuse_unless(lambda r: r.device == "cpu")},
    ],
)
def test_a_kernel_that_takes_some_weights_is_ready(claims: dict[str, Any]) -> None:
    assert report(qtypes=("int4", "int8"), **claims).status == "ready"


def test_a_kernel_that_takes_no_weight_here_says_why() -> None:
    assert report(**refuse_unless(lambda r: False)).status == "not these"


def test_a_refusal_that_raises_is_a_sentence() -> None:
    def refuse(request: Request) -> str | None:
        raise LookupError("no table")

    found = report(refuse=refuse)
    assert (found.ready, found.status) == (False, "can't be asked: LookupError: no table")


def test_a_qtype_that_nobody_knows() -> None:
    assert report(qtypes=("int5", "int6")).status == "takes unknown qtypes only: int5, int6"


def test_blocks_that_the_format_fixes() -> None:
    claims = {"scale_dtypes": {torch.float8_e8m0fnu}, **refuse_unless(lambda r: r.block_size == (1, 32))}
    assert report(qtypes=("mxfp4",), **claims).status == "ready"


def test_a_missing_device_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_report, "device_available", lambda device: False)
    assert report(**refuse_unless(lambda r: 1 // 0 == 0)).status == "no cpu device here"
