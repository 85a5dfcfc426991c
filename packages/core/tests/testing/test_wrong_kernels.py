# SPDX-License-Identifier: Apache-2.0
"""The suite passes a right kernel and fails each wrong one, by the check that was made for its fault."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from quanto import reference
from quanto.kernels import KernelSpec, Request
from quanto.testing import Disagreement, failures
from quanto.testing.run import plan

LINEAR: Callable[..., Tensor] = torch.ops.quanto_core.linear.default
SCALED: Callable[..., Tensor] = torch.ops.quanto_core.scaled_linear.default


def spec(fn: Callable[..., Any], op: str = "linear", **claims: Any) -> KernelSpec:
    """A narrow claim, so that the suite takes a fraction of a second."""
    narrow = {
        "qtypes": {"int4"},
        "dtypes": {torch.float32},
        "granularities": {"group"},
        "scale_dtypes": {torch.float32},
    }
    return KernelSpec("wrong", op, "cpu", fn, **{**narrow, **claims})


def failed(kernel: KernelSpec) -> dict[str, str]:
    """Sentences by check."""
    return dict(line.split(": ", 1) for line in failures(kernel))


def passes(kernel: KernelSpec, name: str) -> bool:
    """Whether all cases of one check pass."""
    found = [(check, case) for check, case in plan(kernel, "cpu") if check.name == name]
    assert found, f"the check {name} applies to no case"
    try:
        for check, case in found:
            check.run(case)
    except Disagreement:
        return False
    except Exception:  # the kernel's own
        return False
    return True


def test_a_right_kernel_passes() -> None:
    assert failures(spec(LINEAR)) == []


def drops_the_bias(x, codes, scale, zero, shared, bias, qtype, block):
    return LINEAR(x, codes, scale, zero, shared, None, qtype, block)


def adds_the_bias_twice(x, codes, scale, zero, shared, bias, qtype, block):
    return LINEAR(x, codes, scale, zero, shared, None if bias is None else 2 * bias, qtype, block)


def moves_the_group_boundary(x, codes, scale, zero, shared, bias, qtype, block):
    wrong = torch.cat([scale[:, :1], scale[:, :-1]], 1) if x.shape[-1] % block[1] else scale
    return LINEAR(x, codes, wrong, zero, shared, bias, qtype, block)


def ignores_the_scales_of_later_groups(x, codes, scale, zero, shared, bias, qtype, block):
    return LINEAR(x, codes, scale[:, :1].expand_as(scale), zero, shared, bias, qtype, block)


def drops_the_last_columns(x, codes, scale, zero, shared, bias, qtype, block):
    x = x.clone()
    x[..., x.shape[-1] // 4 * 4 :] = 0
    return LINEAR(x, codes, scale, zero, shared, bias, qtype, block)


def leaves_the_last_rows_unwritten(x, codes, scale, zero, shared, bias, qtype, block):
    y = LINEAR(x, codes, scale, zero, shared, bias, qtype, block)
    out, tile = torch.empty_like(y), 128 if y.numel() else 1
    done = y.shape[0] if y.ndim < 2 or y.shape[0] < tile else y.shape[0] // tile * tile
    out[:done] = y[:done]
    return out


def accumulates_in_half_precision(x, codes, scale, zero, shared, bias, qtype, block):
    w = reference.dequantize(codes, scale, zero, shared, qtype, block, x.shape[-1], torch.float32)
    total = torch.zeros(*x.shape[:-1], w.shape[0], dtype=torch.float16)
    for some, columns in zip(x.float().split(16, -1), w.split(16, -1), strict=True):
        total = (total.float() + some @ columns.T).half()
    return total if bias is None else total + bias


def spreads_nan(x, codes, scale, zero, shared, bias, qtype, block):
    return LINEAR(x, codes, scale, zero, shared, bias, qtype, block) + (x.sum() * 0 if x.numel() else 0)


def hides_nan(x, codes, scale, zero, shared, bias, qtype, block):
    return LINEAR(x.nan_to_num(), codes, scale, zero, shared, bias, qtype, block)


def overwrites_its_input(x, codes, scale, zero, shared, bias, qtype, block):
    y = LINEAR(x, codes, scale, zero, shared, bias, qtype, block)
    if not x.isnan().any():
        x.mul_(2)
    return y


def refuses_no_tokens(x, codes, scale, zero, shared, bias, qtype, block):
    assert x.numel(), "grid of size 0"
    return LINEAR(x, codes, scale, zero, shared, bias, qtype, block)


def wants_a_matrix(x, codes, scale, zero, shared, bias, qtype, block):
    assert x.ndim == 2
    return LINEAR(x, codes, scale, zero, shared, bias, qtype, block)


def reads_rows_one_behind_the_other(x, codes, scale, zero, shared, bias, qtype, block):
    dense = torch.empty(x.shape).stride()
    inside = x.as_strided(x.shape, dense) if x.untyped_storage().nbytes() >= 4 * (x.storage_offset() + x.numel()) else x
    return LINEAR(inside, codes, scale, zero, shared, bias, qtype, block)


def assumes_alignment(x, codes, scale, zero, shared, bias, qtype, block):
    if codes.data_ptr() % 16:
        codes = torch.zeros_like(codes)
    return LINEAR(x, codes, scale, zero, shared, bias, qtype, block)


def returns_another_dtype(x, codes, scale, zero, shared, bias, qtype, block):
    return LINEAR(x, codes, scale, zero, shared, bias, qtype, block).double()


def compiles_for_each_size(x, codes, scale, zero, shared, bias, qtype, block):
    y = LINEAR(x, codes, scale, zero, shared, bias, qtype, block)
    return y.clone() if x.shape[0] > 16 else y


_scratch = torch.empty(0)


def shares_a_buffer(x, codes, scale, zero, shared, bias, qtype, block):
    global _scratch
    _scratch = x
    time.sleep(1e-3)
    return LINEAR(_scratch, codes, scale, zero, shared, bias, qtype, block)


@pytest.mark.parametrize(
    ("fn", "check"),
    [
        (drops_the_bias, "agrees_elementwise"),
        (drops_the_bias, "adds_a_large_bias"),
        (drops_the_bias, "passes_its_self_check"),
        (adds_the_bias_twice, "agrees_elementwise"),
        (moves_the_group_boundary, "agrees_elementwise"),
        (ignores_the_scales_of_later_groups, "survives_scales_of_all_sizes"),
        (drops_the_last_columns, "agrees_on_any_shape"),
        (leaves_the_last_rows_unwritten, "agrees_elementwise"),
        (spreads_nan, "keeps_nan_in_its_row"),
        (hides_nan, "keeps_nan_in_its_row"),
        (overwrites_its_input, "leaves_its_inputs_alone"),
        (refuses_no_tokens, "agrees_elementwise"),
        (wants_a_matrix, "takes_any_rank"),
        (reads_rows_one_behind_the_other, "takes_strides"),
        (assumes_alignment, "takes_misaligned_memory"),
        (returns_another_dtype, "agrees_elementwise"),
        (compiles_for_each_size, "compiles_once"),
        (shares_a_buffer, "serves_several_threads"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_kernel_fails(fn, check) -> None:
    assert not passes(spec(fn), check)


def test_only_what_is_wrong_is_reported() -> None:
    """A fault of one kind does not drown in complaints about others."""
    assert set(failed(spec(compiles_for_each_size))) == {"compiles_once"}
    assert set(failed(spec(hides_nan))) == {"keeps_nan_in_its_row"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_accumulation_fails(dtype: torch.dtype) -> None:
    def narrow(*args: Any) -> Tensor:
        return accumulates_in_half_precision(*args).to(dtype)

    if dtype == torch.float16:
        assert not passes(spec(narrow, dtypes={dtype}), "agrees_elementwise")
    else:  # half precision is finer than bfloat16: within its tolerance, and rightly so
        assert passes(spec(narrow, dtypes={dtype}), "agrees_elementwise")


def test_the_sentence_names_request_and_element() -> None:
    sentence = failed(spec(drops_the_bias))["agrees_elementwise"]
    assert "wrong int4 group float32" in sentence
    assert "linear int4 group [1x128] float32 on cpu in blocks of 1x32 with float32 scales" in sentence
    assert "the reference has" in sentence


def saturates(x_codes, x_scale, codes, scale, zero, shared, bias, x_qtype, qtype, block, out_scale, dtype, _=""):
    """As x86's `vpmaddubsw` does: pairs of products of unsigned and signed bytes, in 16 bits."""
    shifted = (x_codes.float() + 128, codes.float())
    a, b = (torch.nn.functional.pad(t, (0, t.shape[-1] % 2)).unflatten(-1, (-1, 2)) for t in shifted)
    pairs = torch.einsum("...kp,nkp->...nk", a, b).clamp(-(2**15), 2**15 - 1)
    total = pairs.sum(-1) - 128 * codes.float().sum(-1)
    y = total * x_scale * scale.reshape(-1) + (0 if bias is None else bias)
    return y.to(dtype) if out_scale is None else reference.encode(y / out_scale, quanto_qtype(x_qtype))


def quanto_qtype(name: str) -> Any:
    from quanto.qtypes import get_qtype

    return get_qtype(name)


def ignores_the_output_scale(*args: Any) -> Tensor:
    *before, out_scale, dtype, nonlinearity = args
    return SCALED(*before, None if out_scale is None else out_scale * 1.05, dtype, nonlinearity)


def takes_another_gelu(*args: Any) -> Tensor:
    return SCALED(*args[:-1], {"gelu": "silu"}.get(args[-1], args[-1]))


@pytest.mark.parametrize(
    ("fn", "check"),
    [
        (saturates, "survives_extreme_codes"),
        (ignores_the_output_scale, "takes_static_scales_and_rescales"),
        (takes_another_gelu, "applies_nonlinearities"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_scaled_linear_fails(fn, check) -> None:
    claims = {"qtypes": {"int8"}, "granularities": {"channel"}, "activations": {"int8"}}
    assert passes(spec(SCALED, "scaled_linear", **claims), check)
    assert not passes(spec(fn, "scaled_linear", **claims), check)


def truncates(x, qtype, scale_dtype):
    _, scale = reference.dynamic_quantize(x, qtype, scale_dtype)
    return (x.float() / scale.float()).trunc().nan_to_num().clamp(-128, 127).to(torch.int8), scale


def takes_one_scale_for_all(x, qtype, scale_dtype):
    codes, scale = reference.dynamic_quantize(x.reshape(1, -1), qtype, scale_dtype)
    return codes.reshape(x.shape), scale.expand(*x.shape[:-1], 1).clone()


@pytest.mark.parametrize("fn", [truncates, takes_one_scale_for_all])
def test_a_wrong_dynamic_quantize_fails(fn) -> None:
    claims = {"qtypes": {"int8"}, "granularities": {"tensor"}}
    assert passes(
        spec(torch.ops.quanto_core.dynamic_quantize.default, "dynamic_quantize", **claims), "agrees_elementwise"
    )
    assert not passes(spec(fn, "dynamic_quantize", **claims), "agrees_elementwise")


def test_a_kernel_that_refuses_everything_fails() -> None:
    def refuse(request: Request) -> str | None:
        return "wants in_features of 3 exactly"

    assert failures(spec(LINEAR, refuse=refuse)) == [
        "refuses everything the suite asks: wants in_features of 3 exactly"
    ]
    assert "no known qtype" in failures(spec(LINEAR, qtypes={"int44"}))[0]


def test_a_kernel_for_large_weights_is_asked_for_one() -> None:
    def refuse(request: Request) -> str | None:
        return None if request.shape[-1] >= 4096 else "is slower than the reference below 4096"

    assert not passes(spec(drops_the_bias, refuse=refuse), "adds_a_large_bias")


def test_a_tolerance_is_no_licence() -> None:
    assert not passes(spec(drops_the_bias, tolerance=100.0), "has_a_meaningful_tolerance")


def test_a_fake_that_lies_fails() -> None:
    with torch.library._scoped_library("quanto_test_fakes", "FRAGMENT") as library:
        library.define("linear(Tensor x, Tensor codes, Tensor scale, Tensor? zero_point, Tensor? global_scale, "
                       "Tensor? bias, str qtype, int[] block_size) -> Tensor")  # fmt: skip
        library.impl("linear", reference.linear, "CPU")
        op = torch.ops.quanto_test_fakes.linear.default
        assert not passes(spec(op), "passes_opcheck")
        assert not passes(spec(op), "compiles_once")

        torch.library.register_fake("quanto_test_fakes::linear", lambda x, *_: torch.empty_like(x), lib=library)
        assert not passes(spec(op), "passes_opcheck")
