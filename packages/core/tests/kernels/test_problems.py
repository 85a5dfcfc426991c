# SPDX-License-Identifier: Apache-2.0
"""Random problems for every operator, and a comparison that nothing wrong passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quanto import reference
from quanto.kernels import Request, kernels
from quanto.kernels.problems import arguments, compare, compare_result, default_tolerance, random_weight
from quanto.ops import SCHEMAS
from quanto.plugins import plugins
from quanto.qtypes import qtypes

plugins.load()
NAN, INF = float("nan"), float("inf")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _request(op: str, qtype: str = "int8", **fields: object) -> Request:
    shape, block = ((2, 24, 64), (1, 1, 32)) if op == "grouped_linear" else ((24, 64), (1, 32))
    acts = "int8" if op == "scaled_linear" else ""
    q = qtypes[qtype]
    scale = q.scale_dtype or torch.float32
    request = Request(op, "cpu", torch.float32, qtype, block, shape, scale, activations=acts)
    return replace(request, **fields)  # type: ignore[arg-type]


def _solve(request: Request, tokens: int = 7) -> tuple[list, object]:
    args, at = arguments(request, random_weight(request, _generator()), tokens, _generator())
    assert (at is None) == (request.op in ("quantize", "dynamic_quantize", "pack", "unpack"))
    return args, kernels.specs[f"reference.{request.op}"].fn(*args)


@pytest.mark.parametrize("op", SCHEMAS)
def test_every_operator_is_solved_and_judged(op: str) -> None:
    request = _request(op)
    args, want = _solve(request)
    tolerance = default_tolerance(torch.float32)
    assert compare_result(request, args, want, want, tolerance) is None
    first = want[0] if isinstance(want, tuple) else want
    wrong = (first + 3) if first.is_floating_point() else first.flip(-1)
    got = (wrong, want[1]) if isinstance(want, tuple) else wrong
    assert compare_result(request, args, got, want, tolerance) is not None
    if isinstance(want, tuple):
        assert "scale: element" in str(compare_result(request, args, (want[0], want[1] * 1.01), want, tolerance))


@pytest.mark.parametrize("tokens", [0, 1])
def test_problems_of_few_tokens(tokens: int) -> None:
    for op in ("linear", "linear_input_grad", "grouped_linear", "scaled_linear", "embedding", "dynamic_quantize"):
        args, want = _solve(_request(op), tokens)
        first = want[0] if isinstance(want, tuple) else want
        assert first.shape[0] == tokens  # type: ignore[union-attr]
        assert compare_result(_request(op), args, want, want, 0) is None


def test_an_unknown_operator_is_an_error() -> None:
    with pytest.raises(ValueError, match="no problem is known for the operator 'sort'"):
        arguments(
            replace(_request("linear"), op="sort"), random_weight(_request("linear"), _generator()), 1, _generator()
        )


def test_quantized_outputs_are_compared_as_codes() -> None:
    request = _request("scaled_linear")
    args, _ = _solve(request)
    args[-3] = torch.tensor(0.5)
    want = reference.scaled_linear(*args)
    assert want.dtype == torch.int8
    one = want.clone()
    one[0, 0] += 1 if one[0, 0] < 0 else -1
    assert compare_result(request, args, one, want, 0) is None
    assert "steps off" in str(compare_result(request, args, -want, want, 0))


@pytest.mark.parametrize("qtype", sorted(qtypes))
def test_weights_are_of_the_requested_kind(qtype: str) -> None:
    q = qtypes[qtype]
    request = _request("linear", qtype)
    for kind, dtype in (("none", None), ("int", torch.int8), ("float", torch.float32)):
        codes, scale, zero, shared = random_weight(replace(request, zero_point=kind), _generator())
        assert codes.dtype == q.storage
        assert codes.shape == (24, 64 * q.bits // 8)
        assert (scale.dtype, tuple(scale.shape)) == (request.scale_dtype, (24, 2))
        assert (zero is None) if dtype is None else (zero is not None and zero.dtype == dtype)
        assert (shared is not None) == q.two_level
        values = reference.dequantize(codes, scale, zero, shared, qtype, (1, 32), 64, torch.float32)
        assert values.isfinite().all()
        assert values.unique().numel() > 2


def test_weights_without_a_shape() -> None:
    codes, scale, _, _ = random_weight(replace(_request("linear"), shape=(), block_size=()), _generator())
    assert codes.shape == (1,)
    assert scale.shape == ()


# -- compare -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "want", "sentence"),
    [
        ([1.0, 2.0], [1.0, 2.0], None),
        ([1.0, 2.001], [1.0, 2.0], None),
        ([1.0, 2.1], [1.0, 2.0], r"element [1] is 2.1, the reference has 2 (tolerance 0.01)"),
        ([0.1, 100.0], [0.0, 100.0], None),  # units are those of the row
        ([0.1, 1.0], [0.0, 1.0], "element [0]"),
        ([NAN, 1.0], [NAN, 1.0], None),
        ([NAN, 1.0], [0.0, 1.0], "has NaN where the reference has none"),
        ([0.0, 1.0], [NAN, 1.0], "has NaN"),
        ([INF, 1.0], [INF, 1.0], None),
        ([INF, 1.0], [1.0, 1.0], "element [0]"),
        ([-INF, 1.0], [INF, 1.0], "element [0]"),
        ([0.0, 0.0], [0.0, 0.0], None),
        ([1e-20, 0.0], [0.0, 0.0], "element [0]"),
        ([], [], None),
        (2.0, 2.0, None),
        (2.1, 2.0, "element [] is 2.1"),
    ],
)
def test_elements_are_compared(got: object, want: object, sentence: str | None) -> None:
    found = compare(torch.tensor(got), torch.tensor(want), 0.01)
    assert (found is None) if sentence is None else (found is not None and sentence in found)


def test_one_wrong_row_is_not_lost_among_others() -> None:
    want = torch.randn(1000, 8, generator=_generator())
    want[::2] *= 1e4
    got = want.clone()
    got[501] += 0.1
    assert "element [501, " in str(compare(got, want, 1e-3))


def test_units_and_dtypes() -> None:
    want = torch.ones(2, 2, dtype=torch.float64)
    assert "returned torch.float32 (2, 2), not torch.float64 (2, 2)" in str(compare(want.float(), want, 1))
    assert "returned torch.float64 (2, 1)" in str(compare(want[:, :1], want, 1))
    got = torch.tensor([[1.0, 1.2], [1.0, 1.0]])
    assert compare(got, want, 0.3, unit=torch.ones(2, 2)) is None
    assert "element [0, 1]" in str(compare(got, want, 0.3, unit=torch.full((2, 2), 0.5)))
