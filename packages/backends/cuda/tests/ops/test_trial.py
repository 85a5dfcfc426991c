# SPDX-License-Identifier: Apache-2.0
"""`Trial`: in which thread a kernel compiles, and who waits for it; what it believes is in `test_specialized.py`."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

import quanto
from quanto_backend_cuda import runtime
from quanto_backend_cuda.layout import TILED
from quanto_backend_cuda.ops import trial as module
from quanto_backend_cuda.ops.trial import Trial, agrees, attempts
from quanto_backend_cuda.tables import Tile


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


def run(trial: Trial, kernel: Any, problem: Any) -> torch.Tensor:
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


def test_what_was_prepared_is_waited_for(problem: Any) -> None:
    trial, kernel, right = Trial("tests"), Kernel(problem[-1]), problem[-1]
    out = torch.empty_like(right)
    for _ in range(2):
        trial.prepare("kind", lambda: runtime.launch(kernel, (1,), out), right.device)
    assert kernel.compiled == [], "nobody waits"
    threading.Timer(0.05, kernel.let.set).start()
    assert (run(trial, kernel, problem) == right).all()
    assert len(kernel.compiled) == 2, "once ahead; with Triton the call then finds it compiled"


LAST = """
import threading
import torch
from quanto_backend_cuda import runtime
from quanto_backend_cuda.ops.trial import Trial

class Kernel:
    def __init__(self, name):
        self.name = name

    def warmup(self, out, grid):
        started.set()
        threading.main_thread().join()
        print(self.name)

started, trial, out = threading.Event(), Trial("tests"), torch.empty(1)
for kernel in (Kernel("begun"), Kernel("not begun")):
    trial.prepare(kernel.name, lambda: runtime.launch(kernel, (1,), out), out.device)
    started.wait()
"""


def test_a_process_that_ends_compiles_nothing_more() -> None:
    found = subprocess.run([sys.executable, "-c", LAST], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.split("\n") == ["begun", ""]


def test_what_can_not_be_prepared_is_left_to_the_call(problem: Any) -> None:
    def fails() -> None:
        raise RuntimeError("no driver")

    trial, kernel = Trial("tests"), Kernel(problem[-1])
    trial.prepare("kind", fails, problem[-1].device)
    kernel.let.set()
    assert (run(trial, kernel, problem) == problem[-1]).all(), "what failed once need not fail again"
    assert not trial.refused


def test_a_refused_kernel_serves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in (("warpgroups", True), ("interpreted", False), ("gluon", True)):
        monkeypatch.setattr(module, name, lambda *_, answer=answer: answer)
    trial = Trial("tests")
    assert trial.serves(torch.device("cpu"))
    trial.refused = True
    assert not trial.serves(torch.device("cpu"))


def test_what_starts_no_clusters_is_tried_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "serves", lambda self, device: not self.refused)
    clusters, alone, tile, here = Trial("clusters"), Trial("alone"), Tile(128, 16, cluster=8), torch.device("cpu")
    single = (alone, Tile(128, 16), 1)
    assert list(attempts(clusters, alone, tile, 4, here)) == [(clusters, tile, 4), single]
    assert list(attempts(clusters, alone, tile, 1, here)) == [(alone, tile, 1)], "tiles enough"
    clusters.refused = True
    assert list(attempts(clusters, alone, tile, 4, here)) == [single]


def test_rows_are_compared_each_by_its_own_size() -> None:
    """The first token of a text has activations a hundred times those of the others."""
    want = torch.tensor([[100.0, -90.0], [1.0, 0.5]])
    assert agrees(want * 1.001, want) is True
    assert agrees(torch.tensor([[100.0, -90.0], [0.0, 0.0]]), want) is False
    assert agrees(torch.zeros(2, 2), torch.zeros(2, 2)) is None
    nan = torch.tensor([[float("nan")] * 2, [1.0, 0.5]])
    assert agrees(nan, nan) is True
    assert agrees(want, nan) is False
    assert agrees(nan[:1], nan[:1]) is None


def test_zeros_prove_nothing(problem: Any) -> None:
    x, weight, block, right = problem
    trial, kernel = Trial("tests"), Kernel(torch.zeros_like(right))
    kernel.let.set()
    run(trial, kernel, (torch.zeros_like(x), weight, block, right))
    assert not trial.checked
    with pytest.warns(UserWarning, match="computes something else"):
        assert not trial.run("kind", lambda: kernel[1](right), x, weight, None, torch.zeros_like(right), "int8", block)


def test_a_lack_of_memory_is_no_refusal(problem: Any) -> None:
    x, weight, block, right = problem
    trial = Trial("tests")

    def full() -> None:
        raise torch.OutOfMemoryError("full")

    for checked in (set(), {"kind"}):
        trial.checked = checked
        with pytest.raises(torch.OutOfMemoryError):
            trial.run("kind", full, x, weight, None, torch.empty_like(right), "int8", block)
        assert not trial.refused


def test_a_graph_without_the_kernel_is_said_once(recwarn: pytest.WarningsRecorder) -> None:
    trial = Trial("tests", postpones=True)
    for _ in range(2):
        trial._say_late()
    assert ["call the model twice" in str(said.message) for said in recwarn.list] == [True]
