# SPDX-License-Identifier: Apache-2.0
"""Decoding one sequence with transformers: its rate, and where the time of a token goes.

Four times, from what a user sees to what the GPU does: a token of `generate`; one of `generate` with quanto's loop; one
of the compiled forward pass called in a bare loop; and the kernels of one forward pass, by what they compute. The loop
of transformers waits for the GPU once a token, so that its Python and the guards of torch.compile add to the kernels'
time; quanto's (`quanto_transformers.decode_ahead`) does not. With it Inductor's kernels begin early on Hopper, by an
option of torch that is off by default.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["decode", "kind"]

_PROMPT = 16
_BATCH = 12  # calls of the bare loop between two looks at the clock
# A kernel's kind by a word in its name, the first that is found; the rest are Inductor's norms and elementwise kernels.
_KINDS = {
    "attention": ("attention", "sdpa", "flash", "fmha", "softmax"),
    "layers": ("tinygemm", "linear", "stream", "specialized"),
    "cuBLAS": ("nvjet", "cublas", "gemm", "gemv", "splitk", "cutlass"),
    "copies": ("memcpy", "memset"),
}


def kind(name: str) -> str:
    """What a kernel computes: "attention", "layers" (quantized), "cuBLAS" (float layers), "copies" or "other"."""
    low = name.lower()
    if low.startswith("triton_") and "attention" not in low:
        return "other"  # fused kernels name the operators whose results they read
    return next((k for k, words in _KINDS.items() if any(word in low for word in words)), "other")


def _mark() -> Any:
    if torch.cuda.is_available():
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    return time.perf_counter()


def _milliseconds(a: Any, b: Any) -> float:
    return float(a.elapsed_time(b)) if torch.cuda.is_available() else (b - a) * 1e3


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _generate(model: Any, count: int, loop: Callable[..., Any] | None = None) -> float:
    """Milliseconds: the median from token to token on the GPU's clock, without the first quarter."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Clock(StoppingCriteria):  # type: ignore[misc]
        def __init__(self) -> None:
            self.marks: list[Any] = []

        def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
            self.marks.append(_mark())
            return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    clock = Clock()
    ids = torch.arange(1, 1 + _PROMPT, device=model.device).unsqueeze(0)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        cache_implementation="static",
        stopping_criteria=StoppingCriteriaList([clock]),
        custom_generate=loop,
        pad_token_id=0,
    )
    _wait()
    assert out.shape[1] == _PROMPT + count
    steps = [_milliseconds(a, b) for a, b in itertools.pairwise(clock.marks[count // 4 :])]
    print(f"{count} tokens, {statistics.median(steps):.3f} ms each", file=sys.stderr, flush=True)
    return statistics.median(steps)


def _ahead() -> Callable[..., Any]:
    from quanto_transformers import decode_ahead

    return functools.partial(decode_ahead, early=True)


def _bare(model: Any, count: int) -> Callable[[int], None]:
    """A loop over the very forward pass that `decode_ahead` compiled, with the arguments of its last call."""
    from quanto_transformers.grouped import grouped

    forward = model._compiled_call
    kept: dict[str, Any] = {}

    def spy(*args: Any, **given: Any) -> Any:
        kept.update(given)
        return forward(*args, **given)

    model._compiled_call = spy
    try:
        _generate(model, count, _ahead())
    finally:
        model._compiled_call = forward

    def loop(times: int) -> None:
        for layer in kept["past_key_values"].layers:  # or the positions would run past the end of the cache
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length.fill_(_PROMPT)
        with grouped(model):
            for _ in range(times):
                torch.compiler.cudagraph_mark_step_begin()
                logits = forward(**kept).logits
                kept["input_ids"].copy_(logits[:, -1].argmax(-1)[:, None])
                del logits

    return loop


def _kernels(loop: Callable[[int], None], times: int = 4) -> dict[str, float]:
    """Milliseconds of kernels per token by kind, and their number."""
    from torch.profiler import ProfilerActivity, profile

    loop(2)
    _wait()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        loop(times)
        _wait()
    events = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    sums: dict[str, float] = {}
    for event in events:
        sums[kind(event.name)] = sums.get(kind(event.name), 0.0) + event.time_range.elapsed_us() / times / 1e3
    return {**dict(sorted(sums.items(), key=lambda item: -item[1])), "number": len(events) / times}


@torch.no_grad()
def decode(model: Any, count: int, ready: Callable[[], None]) -> dict[str, Any]:
    """Milliseconds per token.

    Args:
        model: on the device.
        count: tokens of each generation.
        ready: called when all is compiled; returns when the GPU is this process's own.

    Returns:
        `generate_ms`, `ahead_ms`, and where the forward pass was compiled `loop_ms` and `kernels_ms`.
    """
    loops = {"generate_ms": None, "ahead_ms": _ahead()}
    for way in [*loops.values()] * 2:  # compiles; records graphs
        _generate(model, count, way)
    ready()
    found: dict[str, Any] = {
        name: statistics.median(_generate(model, count, way) for _ in range(3)) for name, way in loops.items()
    }
    if not hasattr(model, "_compiled_call"):
        return found
    loop = _bare(model, count)
    steps = []
    for _ in range(5):
        loop(3)
        _wait()
        first = _mark()
        loop(_BATCH)
        last = _mark()
        _wait()
        steps.append(_milliseconds(first, last) / _BATCH)
    found["loop_ms"] = statistics.median(steps)
    if torch.cuda.is_available():
        found["kernels_ms"] = _kernels(loop)
    return found
