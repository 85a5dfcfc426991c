# SPDX-License-Identifier: Apache-2.0
"""The numbers are those of the reference, element by element."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from torch import Tensor

from ... import reference
from ...kernels import Request
from ...kernels.selfcheck import check as self_check
from ...nonlinearity import NONLINEARITIES
from ...qtypes import get_qtype
from ..cases import Case
from ..problem import TOKENS, Problem, make
from .base import Disagreement, check, verify

__all__ = ["poisoned_memory"]

_COUNTS = (0, 1, 3, 17, 130)
_FEATURES = (1, 7, 32, 129, 576)
_LOOSEST = 0.1
_ANY_SIZE = st.one_of(
    st.integers(1, 400), st.integers(1, 12).map(lambda n: 32 * n), st.integers(1, 6).map(lambda n: 64 * n)
)
_SETTINGS = settings(
    max_examples=12,
    deadline=None,
    database=None,
    derandomize=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def _counts(case: Case) -> tuple[int, ...]:
    return _COUNTS if case.spec.op in TOKENS else (1,)


def _has_bias(case: Case) -> bool:
    return case.spec.op in ("linear", "grouped_linear", "scaled_linear")


def _multiplies(case: Case) -> bool:
    return case.spec.op in ("linear", "linear_input_grad", "grouped_linear", "scaled_linear")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, or the largest integer, so that an element nobody wrote is seen."""
    on, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@check()
def agrees_elementwise(case: Case) -> None:
    """Every shape, 0 to 130 tokens, with and without bias, into memory that was not zero before."""
    with poisoned_memory():
        for i, request in enumerate(case.requests):
            for j, tokens in enumerate(_counts(case)):
                features = _FEATURES[j] if request.op == "dynamic_quantize" else None
                problem = make(request, tokens, seed=i + j, features=features)
                if _has_bias(case) and (i + j) % 2:
                    problem = problem.having(bias=None)
                verify(case, problem, _words(problem, tokens))


def _words(problem: Problem, tokens: int) -> str:
    words = f"{tokens} tokens" if problem.request.op in TOKENS else ""
    return f"{words} without bias" if "bias" in problem.given and problem.given["bias"] is None else words


@check(lambda case: case.spec.op != "dynamic_quantize" and len(case.first.shape) == 2)
def agrees_on_any_shape(case: Case) -> None:
    """Shapes that nobody thought of, as far as the kernel claims them; hypothesis names the smallest that fails."""
    groups = sorted({r.block_size[-1] for r in case.requests if r.granularity == "group"}) or [0]

    @_SETTINGS
    @given(_ANY_SIZE, _ANY_SIZE, st.integers(0, 40), st.sampled_from(groups))
    def any_shape(rows: int, size: int, tokens: int, group: int) -> None:
        request = _resized(case.first, rows, size, group)
        assume(request.granularity == case.first.granularity and case.spec.refusal(request) is None)
        verify(case, make(request, tokens, seed=rows), f"{tokens} tokens")

    with suppress(Unsatisfiable):  # it claims hardly any shape; those it does have been asked
        any_shape()


def _resized(request: Request, rows: int, size: int, group: int) -> Request:
    blocks = request.block_size
    if request.granularity == "group":
        blocks = (1, group)
    elif request.granularity == "channel":
        blocks = (1, size)
    elif request.granularity == "block":
        blocks = (min(blocks[0], rows), min(blocks[1], size))
    return replace(request, shape=(rows, size), block_size=blocks)


@check(lambda case: case.first.op not in ("dynamic_quantize", "pack", "unpack") and not _fixed_scales(case))
def survives_scales_of_all_sizes(case: Case) -> None:
    """Rows whose scales differ by powers of two from 2**-6 to 2**6; one row of zeros."""
    for request in case.requests[-2:]:
        problem = make(request, 5, seed=3)
        verify(case, problem.mapped(_stretched, "scale"), "scales from 2**-6 to 2**6 times the usual")


def _fixed_scales(case: Case) -> bool:
    return get_qtype(case.first.qtype).scale_dtype not in (None, torch.float8_e8m0fnu)


def _stretched(scale: Tensor) -> Tensor:
    if scale.ndim == 0:
        return (scale.float() / 64).to(scale.dtype)
    rows = scale.shape[-2]
    factor = torch.exp2((torch.arange(rows) * 5 % 13 - 6).float()).unsqueeze(-1)
    return (scale.float() * factor).to(scale.dtype)


@check(_multiplies)
def survives_extreme_codes(case: Case) -> None:
    """Every code at an end of its range, every activation too: sums that overflow narrow accumulators."""
    for request in case.requests[-2:]:
        for low in (False, True):
            problem = make(request, 3, seed=4).mapped(lambda t: _extreme(t, request.qtype, low), "codes")  # noqa: B023
            problem = problem.mapped(lambda t: torch.ones_like(t), "x", "grad")
            problem = problem.mapped(lambda t: _extreme(t, request.activations, False), "x_codes")  # noqa: B023
            verify(case, problem, f"every code the {'smallest' if low else 'largest'}", coherent=True)


def _extreme(codes: Tensor, qtype: str, low: bool) -> Tensor:
    """Codes of the same packed shape, all of them the smallest or largest value."""
    q = get_qtype(qtype)
    value = torch.full((8 // q.bits * q.bits or 1, 8), -q.amax * 2 if low else q.amax * 2)
    byte = torch.ops.quanto_core.pack(reference.encode(value, q), q.bits)[0]
    repeats = -(-codes.shape[-1] // byte.shape[-1])
    return byte.repeat(repeats)[: codes.shape[-1]].expand_as(codes).contiguous()  # type: ignore[no-any-return]


@check(_has_bias)
def adds_a_large_bias(case: Case) -> None:
    """A bias ten times the products: one that is dropped, doubled or shifted can't hide."""
    request = case.first
    problem = make(request, 5, seed=5)
    verify(case, problem.mapped(lambda t: t * 10 * request.shape[-1] ** 0.5, "bias"), "large bias")


@check(lambda case: case.spec.op == "scaled_linear")
def takes_static_scales_and_rescales(case: Case) -> None:
    """One activation scale for all tokens; the result in floats, and as codes of the next layer's scale."""
    for request in case.requests[-2:]:
        problem = make(request, 17, seed=6)
        problem = problem.having(x_scale=torch.tensor(0.05))
        verify(case, problem, "one static scale")
        y = reference.scaled_linear(*problem.given.values()).float()
        out_scale = (y.abs().max() / 2 / get_qtype(request.activations).amax).float()  # half is beyond the range
        for bias in (problem.given["bias"], None):
            verify(case, problem.having(out_scale=out_scale, bias=bias), "rescaled to codes")


@check(lambda case: case.spec.op == "scaled_linear")
def applies_nonlinearities(case: Case) -> None:
    """Each function that a result may go through, to floats and to codes of the next layer's scale."""
    for name in NONLINEARITIES:
        problem = make(case.first, 17, seed=8).having(nonlinearity=name)
        verify(case, problem, name)
        y = reference.scaled_linear(*problem.given.values()).float()
        out_scale = (y.abs().max() / get_qtype(case.first.activations).amax).float()
        verify(case, problem.having(out_scale=out_scale), f"{name}, rescaled to codes")


@check(lambda case: case.spec.op in TOKENS and case.spec.op != "embedding")
def keeps_nan_in_its_row(case: Case) -> None:
    """A token of NaN gives NaN, and its neighbours are as they were."""
    for tokens in (3, 17):
        problem = make(case.first, tokens, seed=7)
        row = tokens // 2
        problem = problem.mapped(lambda t: _with_nan(t, row), "x", "grad", "x_scale")  # noqa: B023
        if case.spec.op == "dynamic_quantize":
            got = case.spec.fn(*problem.arguments(case.spec))[1].float().isnan().flatten().tolist()
            if got != [i == row for i in range(tokens)]:
                raise Disagreement(f"{tokens} tokens, token {row} holds NaN: its scale must be NaN, and no other")
        else:
            verify(case, problem, f"{tokens} tokens, token {row} holds NaN")


def _with_nan(t: Tensor, row: int) -> Tensor:
    t = t.clone()
    t[row, t.shape[-1] // 2] = float("nan")
    return t


@check()
def passes_its_self_check(case: Case) -> None:
    """The check at first use, which takes the kernel out of service where it fails."""
    layout = make(case.first, 1).layout(case.spec)
    fn = getattr(torch.ops.quanto_core, case.spec.op).default
    sentence = self_check(case.spec, case.first, layout, fn)
    if sentence is not None:
        raise Disagreement(f"the self check at first use says: {sentence}")


@check(once=True)
def has_a_meaningful_tolerance(case: Case) -> None:
    """A tolerance of the kernel's own is no licence for anything."""
    if case.spec.tolerance is not None and not 0 < case.spec.tolerance <= _LOOSEST:
        raise Disagreement(f"tolerance is {case.spec.tolerance}; give at most {_LOOSEST}, or None for the default")
