# SPDX-License-Identifier: Apache-2.0
"""The check at first use catches wrong kernels, and nothing of the caller reaches it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from quanto import reference
from quanto.kernels import KernelSpec, Layout, Request
from quanto.kernels.selfcheck import _smaller, check

Make = Callable[..., KernelSpec]
REQUEST = Request("linear", "cpu", torch.float32, "int8", (1, 64), (32, 64))


def _check(spec: KernelSpec, request: Request = REQUEST, layout: Layout | None = None) -> str | None:
    return check(spec, request, layout, getattr(reference, spec.op))


@pytest.mark.parametrize("qtype", ["int8", "int4", "float8_e4m3fn", "nf4"])
@pytest.mark.parametrize("block", [(1, 64), (1, 32)])
def test_a_right_kernel_passes(make: Make, qtype: str, block: tuple[int, int]) -> None:
    assert _check(make(qtypes={qtype}), replace(REQUEST, qtype=qtype, block_size=block)) is None


def _drops_bias(x, codes, scale, zero, shared, bias, qtype, block):
    return reference.linear(x, codes, scale, zero, shared, None, qtype, block)


def _drops_zero_point(x, codes, scale, zero, shared, bias, qtype, block):
    return reference.linear(x, codes, scale, None, shared, bias, qtype, block)


def _wrong_beyond_16_rows(x, *args):
    y = reference.linear(x, *args)
    y[16:] = 0
    return y


def _wrong_dtype(x, *args):
    return reference.linear(x, *args).double()


def _raises(*args):
    raise NotImplementedError("sm_75")


def _exits(*args):
    raise SystemExit(3)


def _zeroes_x(x, *args):
    y = reference.linear(x, *args)
    x.zero_()
    return y


def _zeroes_codes(x, codes, *args):
    y = reference.linear(x, codes, *args)
    codes.zero_()
    return y


@pytest.mark.parametrize(
    ("fn", "sentence"),
    [
        (_drops_bias, "element ["),
        (_drops_zero_point, "element ["),
        (_wrong_beyond_16_rows, "element [1"),
        (_wrong_dtype, "returned torch.float64"),
        (_raises, "raised NotImplementedError: sm_75"),
        (_exits, "raised SystemExit: 3"),
        (_zeroes_x, "wrote into its arguments"),
        (_zeroes_codes, "wrote into its arguments"),
    ],
)
def test_a_wrong_kernel_is_found(make: Make, fn: Callable[..., Any], sentence: str) -> None:
    request = replace(REQUEST, zero_point="int")
    assert sentence in str(_check(make(fn=fn, zero_points={"int"}), request))


def test_a_kernel_may_state_its_tolerance(make: Make) -> None:
    def coarse(x, *args):
        return reference.linear(x, *args) * 1.01

    assert "tolerance 0.0001" in str(_check(make(fn=coarse)))
    assert _check(make(fn=coarse, tolerance=0.1)) is None


def test_the_truth_is_made_on_the_cpu(make: Make) -> None:
    """Where the kernel's device has no such dtype, the reference could not run there."""
    seen: dict[str, set[str]] = {"reference": set(), "kernel": set()}

    def look(who: str, *args: Any) -> torch.Tensor:
        seen[who] |= {a.device.type for a in args if isinstance(a, torch.Tensor)}
        return reference.linear(*args) if who == "reference" else torch.zeros(args[0].shape[0], 32)

    spec = make(fn=lambda *args: look("kernel", *args), device="meta")
    said = check(spec, replace(REQUEST, device="meta"), None, lambda *args: look("reference", *args))
    assert seen == {"reference": {"cpu"}, "kernel": {"meta"}}
    assert "the reference has" in str(said)


def test_layouts_are_packed_first(make: Make) -> None:
    def flip(tensors, qtype, block, size):
        return tensors[0].flip(0), tensors[1].flip(0), *tensors[2:]

    def flipped(x, codes, scale, *args):
        return reference.linear(x, codes.flip(0), scale.flip(0), *args)

    spec = make(fn=flipped, layout="test.flipped")
    assert _check(spec, layout=Layout("test.flipped", flip, flip)) is None
    assert _check(spec, layout=Layout("test.flipped", lambda t, *_: t, flip)) is not None


@pytest.mark.parametrize(
    ("shape", "block", "small", "small_block"),
    [
        ((256, 1024), (1, 1024), (256, 1024), (1, 1024)),
        ((4096, 4096), (1, 4096), (128, 1024), (1, 1024)),
        ((4100, 4096), (1, 128), (132, 1024), (1, 128)),
        ((11008, 4200), (1, 128), (128, 1128), (1, 128)),
        ((11008, 4099), (1, 4099), (128, 1027), (1, 1027)),
        ((512, 2048), (), (128, 1024), ()),
        ((512, 2048), (128, 128), (512, 1024), (128, 128)),
        ((8, 512, 2048), (1, 1, 2048), (3, 128, 1024), (1, 1, 1024)),
        ((4, 64), (1, 64), (32, 64), (1, 64)),
        ((), (), (), ()),
    ],
)
def test_problems_are_made_small(
    shape: tuple[int, ...], block: tuple[int, ...], small: tuple[int, ...], small_block: tuple[int, ...]
) -> None:
    made = _smaller(replace(REQUEST, shape=shape, block_size=block))
    assert (made.shape, made.block_size) == (small, small_block)
    assert made.granularity == replace(REQUEST, shape=shape, block_size=block).granularity


def test_what_is_outside_of_the_claim_is_not_judged(make: Make) -> None:
    spec = make(fn=_drops_bias, refuse=lambda request: None if request.shape[0] > 200 else "too few rows")
    assert _check(spec, replace(REQUEST, shape=(400, 64))) is None


def test_large_weights_are_not_made(make: Make) -> None:
    sizes: list[int] = []

    def spy(x, codes, *args):
        sizes.append(codes.numel())
        return reference.linear(x, codes, *args)

    assert _check(make(fn=spy), replace(REQUEST, shape=(50000, 8192), block_size=(1, 8192))) is None
    assert max(sizes) <= 192 * 1024


def test_the_callers_modes_do_not_reach_it(make: Make) -> None:
    seen: list[object] = []

    def spy(x, *args):
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), isinstance(x, FakeTensor)))
        seen.append(threading.current_thread().name)
        return reference.linear(x, *args)

    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad(), FakeTensorMode():
        assert _check(make("test.spy", fn=spy)) is None
    assert set(seen) == {(False, False, False), "quanto-selfcheck-test.spy"}


def test_kernels_that_compile_are_called_with_all_problems_at_once(make: Make) -> None:
    together = threading.Barrier(2, timeout=20)

    def right(x: torch.Tensor, *args: Any) -> torch.Tensor:
        together.wait()
        return reference.linear(x, *args)

    assert _check(make(fn=right, compiles=True)) is None
    wrong = _check(make(fn=_wrong_beyond_16_rows, compiles=True))
    assert wrong is not None
    assert wrong == _check(make(fn=_wrong_beyond_16_rows))
