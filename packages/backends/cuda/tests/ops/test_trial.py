# SPDX-License-Identifier: Apache-2.0
"""`Trial`: in which thread a kernel compiles, and who waits for it; what it believes is in `test_specialized.py`."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import quanto
from quanto_backend_cuda import runtime
from quanto_backend_cuda.layout import TILED
from quanto_backend_cuda.ops import trial as module
from quanto_backend_cuda.ops.trial import Trial


class Kernel:
    """Stands for a Triton function: compiles when it is let, and writes the answer that it is given."""

    def __init__(self, answer: torch.Tensor) -> None:
        self.answer = answer
        self.let = threading.Event()
        self.compiled: list[threading.Thread] = []

    def warmup(self, out: torch.Tensor, grid: Any) -> None:
        assert self.let.wait(10)
        self.compiled.append(threading.current_thread())

    def __getitem__(self, grid: Any) -> Any:
        return lambda out: out.copy_(self.answer)


@pytest.fixture
def problem(device: str) -> Any:
    w = quanto.quantize_tensor(torch.randn(32, 128, device=device).half(), "int8")
    weight = TILED.pack((w.codes, w.scale, w.zero_point, None), "int8", w.block_size, 128)
    x = torch.randn(4, 128, device=device).half()
    return x, weight, list(w.block_size), x @ w.dequantize(torch.float16).t()


def run(trial: Trial, kernel: Kernel, problem: Any) -> torch.Tensor:
    x, weight, block, right = problem
    out = torch.full_like(right, float("nan"))
    assert trial.run("kind", lambda: runtime.launch(kernel, (1,), out), x, weight, None, out, "int8", block)
    return out


def test_a_postponed_kernel_is_waited_for_by_the_second_call(problem: Any) -> None:
    trial, kernel, right = Trial("tests", postpones=True), Kernel(problem[-1]), problem[-1]
    first = run(trial, kernel, problem)  # returns though nobody has let the kernel compile
    assert ((first - right).abs() <= 2e-3 * right.abs().max()).all()
    kernel.let.set()
    assert (run(trial, kernel, problem) == right).all()
    assert [thread is threading.current_thread() for thread in kernel.compiled] == [False]
    assert trial.checked == {"kind"}


def test_another_is_waited_for_by_the_first(problem: Any) -> None:
    trial, kernel = Trial("tests"), Kernel(problem[-1])
    threading.Timer(0.05, kernel.let.set).start()
    assert (run(trial, kernel, problem) == problem[-1]).all()
    assert len(kernel.compiled) == 1
    assert trial.checked == {"kind"}


def test_a_refused_kernel_serves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in (("warpgroups", True), ("interpreted", False), ("gluon", True)):
        monkeypatch.setattr(module, name, lambda *_, answer=answer: answer)
    trial = Trial("tests")
    assert trial.serves(torch.device("cpu"))
    trial.refused = True
    assert not trial.serves(torch.device("cpu"))
