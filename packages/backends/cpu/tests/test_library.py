# SPDX-License-Identifier: Apache-2.0
"""Instruction sets by name, tracing, threads, processes."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from weights import sample

import quanto_backend_cpu
from quanto_backend_cpu.library import _shared_library, operator


def test_instruction_sets() -> None:
    names = quanto_backend_cpu.instruction_sets()
    assert names[-1] == "portable"
    before = quanto_backend_cpu.instruction_set()
    for name in names:
        with quanto_backend_cpu.use(name):
            assert quanto_backend_cpu.instruction_set() == name
    assert quanto_backend_cpu.instruction_set() == before
    with quanto_backend_cpu.use("portable"):
        with quanto_backend_cpu.use(before):
            assert quanto_backend_cpu.instruction_set() == before
        assert quanto_backend_cpu.instruction_set() == "portable"
    with pytest.raises(RuntimeError, match="unknown instruction set mmx; known here: "), quanto_backend_cpu.use("mmx"):
        pass


def test_the_environment_names_one() -> None:
    code = "import quanto_backend_cpu; print(quanto_backend_cpu.instruction_set())"
    env = {**os.environ, "QUANTO_CPU_ISA": "portable"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "portable"


def test_an_unknown_one_leaves_the_plugin_out_with_one_warning() -> None:
    code = """
import warnings, torch, quanto
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    quanto.freeze(quanto.quantize(torch.nn.Linear(64, 64), "int4"))(torch.randn(1, 64))
told = [str(w.message) for w in heard if "avx5" in str(w.message)]
assert len(told) == 1 and "was left out" in told[0], [str(w.message) for w in heard]
"""
    env = {**os.environ, "QUANTO_CPU_ISA": "avx5"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_library_that_cannot_be_loaded_says_so_twice() -> None:
    code = """
import torch
from quanto_backend_cpu import library
whole = library._shared_library
library._shared_library = lambda: "/nowhere/quanto_cpu.so"
for _ in range(2):
    try:
        library.load()
    except OSError as error:
        assert "nowhere" in str(error), error
    else:
        raise SystemExit(1)
library._shared_library = whole
library.load()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="counts instructions of x86-64")
def test_kernels_ask_for_memory_ahead() -> None:
    """A compiler may leave prefetches out as without effect, which costs a fifth of the speed and no result."""
    pattern = re.compile(rb"\x0f\x18[\x08-\x0f\x48-\x4f\x88-\x8f]")  # prefetcht0
    assert len(pattern.findall(_shared_library().read_bytes())) > 1500  # 2600, of five instruction sets
    built = sorted((Path(__file__).parents[1] / "build").glob("*/CMakeFiles/*/csrc/isa_*.o"))
    if not built:
        pytest.skip("the library was not built here: no objects that tell the instruction sets apart")
    asked = {path.parents[1].stem: len(pattern.findall(path.read_bytes())) for path in built}
    assert set(asked) == {"quanto_cpu", "quanto_avx2", "quanto_vnni", "quanto_avx512", "quanto_bf16"}
    assert all(count > 200 for count in asked.values()), asked  # 270 to 730


def test_operators_trace() -> None:
    w = sample("int4", (33, 128), 32, "int")
    x = torch.randn(5, 128)
    tail = ["int4", list(w.blocks)]
    for name, args in (
        ("linear_panels", (x, *w.panels, torch.randn(33), *tail)),
        ("linear_integer_panels", (x, *w.panels, None, *tail)),
        ("linear", (x, *w.canonical, None, *tail)),
        ("linear_integer", (x, *w.canonical, None, *tail)),
        ("dequantize", (*w.canonical, *tail, 128, torch.float32)),
        ("embedding", (torch.tensor([1, 2]), *w.canonical, *tail, 128, torch.float32)),
        ("dequantize_panels", (*w.panels, *tail, 128, torch.float32)),
        ("embedding_panels", (torch.tensor([1, 2]), *w.panels, *tail, 128, torch.float32)),
        ("quantize", (torch.randn(33, 128), *w.canonical[1:], *tail)),
        ("dynamic_quantize", (x, "int8", torch.float32)),
        ("pack", (torch.zeros(3, 9, dtype=torch.uint8), 3)),
        ("unpack", (torch.zeros(3, 4, dtype=torch.uint8), 3, 9)),
    ):
        torch.library.opcheck(operator(name), args)
    codes = torch.randint(-128, 128, (5, 128), dtype=torch.int8)
    for out_scale, more in ((None, ()), (torch.tensor(0.5), ("gelu",))):
        args = (codes, torch.rand(5, 1), *w.panels, None, "int8", *tail, out_scale, torch.float32, *more)
        torch.library.opcheck(operator("scaled_linear_panels"), args)
        torch.library.opcheck(operator("scaled_linear"), (*args[:2], *w.canonical, *args[6:]))


def test_one_graph_serves_every_token_count() -> None:
    w = sample("int8", (33, 128))
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    linear = operator("linear_panels")

    def layer(x: torch.Tensor) -> torch.Tensor:
        return linear(x, *w.panels, None, "int8", list(w.blocks)).relu()

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=count, fullgraph=True, dynamic=True)
    for tokens in (19, 3, 130, 5):
        x = torch.randn(tokens, 128)
        assert torch.equal(compiled(x), layer(x))
    assert graphs == 1


def test_several_threads_at_once() -> None:
    w = sample("int4", (66, 512), 128)
    xs = [torch.randn(n, 512) for n in (1, 4, 17, 40)]
    call = operator("linear_integer_panels")
    want = [call(x, *w.panels, None, "int4", list(w.blocks)) for x in xs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(call(xs[index], *w.panels, None, "int4", list(w.blocks)), want[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_thread_counts_are_obeyed_and_change_nothing() -> None:
    w = sample("int4", (1024, 2048), 128)
    x = torch.randn(9, 2048)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(operator("linear_panels")(x, *w.panels, None, "int4", list(w.blocks)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_computes() -> None:
    code = """
import os, sys, torch
from quanto_backend_cpu.library import operator
tasks = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
call = operator("linear")
codes = torch.ones(512, 4096, dtype=torch.int8)
args = (torch.ones(4, 4096), codes, torch.ones(512, 1), None, None, None, "int8", [1, 4096])
alone = tasks()
torch.set_num_threads(2)
call(*args)
assert not alone or tasks() > alone, "the kernel made no thread: nothing is tried"
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if (call(*args) == 4096).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_a_kernel_that_lies_is_replaced_with_one_warning() -> None:
    code = """
import warnings, torch, quanto
from dataclasses import replace
from quanto.kernels import kernels
from quanto.plugins import plugins
plugins.load()
true = kernels.specs["cpu.linear"]
def lie(x, *rest):
    y = true.fn(x, *rest)
    y[:, 3] *= 1.01
    return y
kernels.specs["cpu.linear"] = replace(true, fn=lie)
kernels.calls["cpu.linear"] = lie
layer = quanto.freeze(quanto.quantize(torch.nn.Linear(256, 64), "int4"))
x = torch.randn(5, 256)
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    y = layer(x)
    again = layer(x)
told = [str(w.message) for w in heard]
assert len(told) == 1 and "is replaced by the next best" in told[0], told
want = torch.nn.functional.linear(x, layer.weight.dequantize(), layer.bias)
assert (y - want).abs().max() < 1e-4 and torch.equal(y, again)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
