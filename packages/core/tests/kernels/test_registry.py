# SPDX-License-Identifier: Apache-2.0
"""Registering, choosing, forcing, blocking and distrusting kernels."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from quanto import reference
from quanto.kernels import KernelConflict, KernelFallbackWarning, KernelRegistry, KernelSpec, Layout, Request, selfcheck

Make = Callable[..., KernelSpec]
Key = Callable[..., str]
KEEP = Layout("test.keep", lambda tensors, *_: tensors, lambda tensors, *_: tensors)


def _wrong(x, codes, scale, zero, shared, bias, qtype, block):
    return reference.linear(x, codes, scale, zero, shared, bias, qtype, block) * 1.5


def _raises(*args):
    raise RuntimeError("no such instruction")


def _name(registry: KernelRegistry, key: str, dtype: torch.dtype = torch.float32) -> str:
    return registry.name_for("linear", key, "cpu", dtype)


# -- registration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ({"op": "convolve"}, "no operator 'convolve'; known: quantize, "),
        ({"qtypes": ()}, "claims no qtype"),
        ({"name": "reference.linear"}, "'reference.linear' of plugin is registered already by quanto-core"),
        ({"layout": "test.keep"}, "register its layout 'test.keep' first"),
    ],
)
def test_unsound_kernels_are_refused(registry: KernelRegistry, make: Make, claims: dict, sentence: str) -> None:
    before = dict(registry.specs)
    with pytest.raises(ValueError, match=sentence), registry.transaction("plugin"):
        registry.register(make(**claims))
    assert registry.specs == before


def test_a_conflict_names_both(registry: KernelRegistry, make: Make) -> None:
    with registry.transaction("first-plugin"):
        registry.register(make("first.linear"))
    with (
        pytest.raises(KernelConflict, match=r"'second\.linear' \(second-plugin\) and 'first\.linear' \(first-plugin\)"),
        registry.transaction("second-plugin"),
    ):
        registry.register(make("second.linear"))
    for apart in ({"dtypes": {torch.float64}}, {"priority": 99}, {"qtypes": {"int4"}}, {"device": "meta"}):
        registry.register(make(f"other.{next(iter(apart))}", **apart))


def test_layouts_have_one_owner(registry: KernelRegistry) -> None:
    registry.register_layout(KEEP)
    for layout in (KEEP, Layout("canonical", KEEP.pack, KEEP.unpack)):
        with pytest.raises(ValueError, match=f"layout '{layout.name}' is registered already"):
            registry.register_layout(layout)


def test_a_failed_transaction_leaves_nothing(registry: KernelRegistry, make: Make, key: Key) -> None:
    before = dict(registry.specs), dict(registry.layouts), dict(registry.calls)
    calls = registry.calls

    def plugin() -> None:
        with registry.transaction("plugin"):
            registry.register_layout(KEEP)
            registry.register(make())
            registry.register(make("test.kept", layout="test.keep", priority=5))
            assert _name(registry, key()) == "test.kernel"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        plugin()
    assert (registry.specs, registry.layouts, registry.calls) == before
    assert registry.calls is calls, "operators hold this dictionary"
    assert _name(registry, key()) == "reference.linear"
    registry.register(make())
    assert registry.specs["test.kernel"].origin == "quanto-core", "the origin is that of before the transaction"


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_the_highest_priority_that_fits_wins(registry: KernelRegistry, make: Make, key: Key) -> None:
    for priority in (10, 30, 20):
        registry.register(make(f"test.{priority}", priority=priority))
    registry.register(make("test.half", priority=40, dtypes={torch.float16}))
    choice = registry.choose(Request.parse("linear", key(), "cpu", torch.float32))
    assert choice.spec.name == "test.30"
    assert [c.spec.name for c in choice.candidates] == [
        "test.half",
        "test.30",
        "test.20",
        "test.10",
        "reference.linear",
    ]
    assert [bool(c.refusal) for c in choice.candidates] == [True, False, False, False, False]
    assert "takes dtype float16, not float32" in str(choice.candidates[0].refusal)
    assert _name(registry, key(), torch.float16) == "test.half"
    assert _name(registry, key("int4")) == "reference.linear"


def test_choosing_happens_once(registry: KernelRegistry, make: Make, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(make())
    asked: list[Request] = []
    choose = registry.choose
    monkeypatch.setattr(registry, "choose", lambda request: (asked.append(request), choose(request))[1])
    assert {_name(registry, key()) for _ in range(5)} == {"test.kernel"}
    assert len(asked) == 1
    registry.register(make("test.better", priority=200))
    assert _name(registry, key()) == "test.better", "a new kernel is asked"


def test_a_layout_of_ones_own_answers_to_arranged_weights_only(registry: KernelRegistry, make: Make, key: Key) -> None:
    registry.register_layout(Layout("test.flipped", KEEP.pack, lambda tensors, *_: (tensors[0].flip(0), *tensors[1:])))
    registry.register(make(layout="test.flipped", dtypes={torch.bfloat16}))
    canonical, arranged = (
        Request.parse("linear", key(layout=n), "cpu", torch.bfloat16) for n in ("canonical", "test.flipped")
    )
    assert registry.choose(canonical).spec.name == "reference.linear"
    assert registry.choose(canonical, any_layout=True).spec.name == "test.kernel"
    assert registry.choose(arranged).spec.name == "test.kernel"
    # another dtype, and the reference where it is forced, take such a weight back to the canonical layout first
    other = registry.choose(Request.parse("linear", key(layout="test.flipped"), "cpu", torch.float32)).spec
    codes, scale = torch.randint(-99, 99, (32, 64), dtype=torch.int8), torch.rand(32, 1)
    x = torch.randn(3, 64)
    for dtype in (torch.float32, torch.bfloat16):
        with registry.select("reference.linear"):
            spec = registry.choose(Request.parse("linear", key(layout="test.flipped"), "cpu", dtype)).spec
        assert spec.name == other.name
        assert spec.name.startswith("reference.linear[test.flipped")
        got = registry.calls[spec.name](x, codes.flip(0), scale, None, None, None, "int8", (1, 64))
        assert torch.equal(got, reference.linear(x, codes, scale, None, None, None, "int8", (1, 64)))


def test_a_layout_is_chosen_once_until_kernels_change(registry: KernelRegistry, make: Make, key: Key) -> None:
    request = Request.parse("linear", key(), "cpu", torch.float32)
    assert registry.layout_for(request) == "canonical"
    registry.register_layout(Layout("test.flipped", KEEP.pack, KEEP.unpack))
    registry.register(make(layout="test.flipped"))
    assert registry.layout_for(request) == "test.flipped"
    with registry.select("-test.kernel"):
        assert registry.layout_for(request) == "canonical"
    assert registry.layout_for(request) == "test.flipped"


# -- by name -----------------------------------------------------------------------------------------------------------


def test_select_forces_and_blocks_and_puts_back(registry: KernelRegistry, make: Make, key: Key) -> None:
    with registry.transaction("plugin"):
        registry.register(make("test.fast", priority=30))
        registry.register(make("test.slow", priority=20))
    assert _name(registry, key()) == "test.fast"
    with registry.select("test.slow"):
        assert _name(registry, key()) == "test.slow"
        assert registry.selection == ({"test.slow"}, set())
        with registry.select("-test.slow"):
            assert _name(registry, key()) == "test.fast", "blocked beats forced"
        assert _name(registry, key()) == "test.slow"
        assert _name(registry, key("int4")) == "reference.linear", "forced, but it does not take int4"
    with registry.select("-plugin"):
        assert _name(registry, key()) == "reference.linear", "a distribution's name blocks all of its kernels"
    with pytest.raises(ZeroDivisionError), registry.select("-test.fast"):
        raise ZeroDivisionError
    assert _name(registry, key()) == "test.fast"
    with pytest.raises(ValueError, match=r"no kernel 'test\.fats'; known: .*test\.fast"), registry.select("test.fats"):
        pass
    with registry.select("-quanto-core"):
        assert _name(registry, key("int4")) == "reference.linear", "references cannot be blocked"


def test_what_is_found_out_within_select_stays_true(registry: KernelRegistry, make: Make, key: Key) -> None:
    registry.register(make("test.fast", priority=30))
    registry.register(make("test.slow", priority=20))
    assert _name(registry, key()) == "test.fast"
    with registry.select("test.slow"), pytest.warns(RuntimeWarning, match=r"test\.fast"):
        registry.distrust("test.fast", "it lied")
    assert _name(registry, key()) == "test.slow"


@pytest.mark.parametrize(
    ("text", "expected"), [("", "test.fast"), ("test.slow", "test.slow"), ("-test.fast , ", "test.slow")]
)
def test_the_environment_selects(
    make: Make, key: Key, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.setenv("QUANTO_KERNELS", text)
    registry = KernelRegistry()
    registry.register(make("test.fast", priority=30))
    registry.register(make("test.slow", priority=20))
    assert registry.choose(Request.parse("linear", key(), "cpu", torch.float32)).spec.name == expected


# -- fallbacks ---------------------------------------------------------------------------------------------------------


def test_a_fallback_warns_once_per_reason(registry: KernelRegistry, make: Make, key: Key) -> None:
    registry.register(make(dtypes={torch.bfloat16}))
    with pytest.warns(
        KernelFallbackWarning, match=r"reference runs .*: the kernel test\.kernel takes dtype bfloat16, not float32"
    ):
        _name(registry, key())
    with pytest.warns(KernelFallbackWarning, match="not float16"):
        _name(registry, key(), torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _name(registry, key(block=(1, 128)))  # the same reason, for another weight
        _name(registry, key("int4"))  # not made for it
        _name(registry, key(), torch.bfloat16)  # no fallback
        with registry.select("-test.kernel"):
            _name(registry, key(), torch.float64)  # asked for
        with registry.select("reference.linear"):
            _name(registry, key(), torch.float64)


# -- distrust ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "reason"),
    [(_wrong, r"element \[\d+, \d+\] is .*, the reference has"), (_raises, "raised RuntimeError: no such instruction")],
)
def test_a_kernel_that_lies_is_replaced(registry: KernelRegistry, make: Make, key: Key, fn, reason: str) -> None:
    with registry.transaction("liar-plugin"):
        registry.register(make("test.liar", fn=fn))
    registry.register(make("test.honest", priority=20))
    with pytest.warns(RuntimeWarning, match=rf"kernel 'test\.liar' of liar-plugin is replaced .*{reason}"):
        assert _name(registry, key()) == "test.honest"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _name(registry, key(), torch.float16) == "test.honest", "one lie is enough"
    candidates = registry.choose(Request.parse("linear", key(), "cpu", torch.float32)).candidates
    assert "failed its self check" in str(candidates[0].refusal)


def test_no_fallback_warning_after_a_lie(registry: KernelRegistry, make: Make, key: Key) -> None:
    registry.register(make(fn=_wrong))
    registry.register(make(name="test.other", dtypes=frozenset({torch.bfloat16}), priority=105))
    with pytest.warns(RuntimeWarning) as caught:
        assert _name(registry, key()) == "reference.linear"
    assert not any(issubclass(w.category, KernelFallbackWarning) for w in caught)


def test_each_kind_of_problem_is_checked(registry: KernelRegistry, make: Make, key: Key) -> None:
    def wrong_in_half(x, *args):
        return reference.linear(x, *args) * (2 if x.dtype == torch.float16 else 1)

    registry.register(make(fn=wrong_in_half))
    assert _name(registry, key()) == "test.kernel"
    with pytest.warns(RuntimeWarning, match=r"test\.kernel"):
        assert _name(registry, key(), torch.float16) == "reference.linear"
    assert _name(registry, key()) == "reference.linear", "nobody trusts it any more"


def test_the_check_of_a_kernel_that_compiles_begins_when_weights_are_arranged(
    registry: KernelRegistry, make: Make, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, let = [], threading.Event()

    class Slow(selfcheck.Check):
        def __init__(self, spec: KernelSpec, *given: Any) -> None:
            begun.append(spec.name)
            super().__init__(spec, *given)

        def _run(self) -> None:
            assert let.wait(10)
            self._found.append(None)

    monkeypatch.setattr(selfcheck, "Check", Slow)
    registry.register(make("test.slow", compiles=True, device="cuda"))
    registry.register(make("test.here", compiles=True))
    for device in ("cuda", "cuda", "cpu"):
        request = Request.parse("linear", key(), device, torch.float32)
        registry.layout_for(replace(request, shape=(32 + len(begun), 64)))
    assert begun == ["test.slow"], "once, and not for the CPU"
    let.set()
    assert registry.name_for("linear", key(), "cuda", torch.float32) == "test.slow"
    assert begun == ["test.slow"], "the first call waits for it"
    registry.name_for("linear", key(), "cuda", torch.float16)
    assert begun == ["test.slow"] * 2, "another kind"


def test_a_kernel_that_checks_itself_is_not_checked(
    registry: KernelRegistry, make: Make, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck, "Check", None)  # raises where one is begun
    halves = Request.parse("linear", key(), "cuda", torch.float16)
    own = make("test.own", compiles=True, device="cuda", checks_itself=lambda request: request.dtype == torch.float16)
    registry.register(own)
    registry.layout_for(halves)
    assert registry.name_for("linear", key(), "cuda", torch.float16) == "test.own"
    with pytest.raises(TypeError):
        registry.name_for("linear", key(), "cuda", torch.float32)


@pytest.mark.filterwarnings("always")
def test_many_threads_get_one_answer(registry: KernelRegistry, make: Make, key: Key) -> None:
    threads = 8
    barrier = threading.Barrier(threads)
    registry.register(make("test.liar", fn=_wrong))
    registry.register(make("test.honest", priority=20))

    def ask(_: int) -> list[str]:
        barrier.wait()
        return [_name(registry, key(), dtype) for dtype in (torch.float32, torch.bfloat16) for _ in range(20)]

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("always")
        answers = [answer for found in pool.map(ask, range(threads)) for answer in found]
    assert set(answers) == {"test.honest"}
    assert [w.category for w in caught] == [RuntimeWarning]


# -- functions ---------------------------------------------------------------------------------------------------------


def test_functions_are_found_by_name_and_device(registry: KernelRegistry) -> None:
    def first() -> None: ...

    def second() -> None: ...

    with registry.transaction("plugin"):
        registry.register_function("attend", "cuda", first)
    assert registry.function("attend", "cuda") is first
    assert registry.function("attend", "cpu") is None

    def other() -> None:
        with registry.transaction("other"):
            registry.register_function("attend", "cpu", second)
            registry.register_function("attend", "cuda", second)

    with pytest.raises(ValueError, match=r"function 'attend' for cuda is registered by plugin"):
        other()
    assert registry.function("attend", "cpu") is None, "the whole plugin is taken back"
    with registry.select("-plugin"):
        assert registry.function("attend", "cuda") is None
