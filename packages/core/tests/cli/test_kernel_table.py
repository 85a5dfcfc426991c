# SPDX-License-Identifier: Apache-2.0
"""Kernels in a pipe and in terminals of usual widths."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from quanto.cli import kernel_table
from quanto.cli.kernel_report import KernelReport

REFERENCE = KernelReport(
    name="reference.linear",
    op="linear",
    device="any",
    qtypes=None,
    activations=None,
    dtypes=None,
    granularities=None,
    zero_points=None,
    scale_dtypes=None,
    layout="canonical",
    min_capability=None,
    priority=0,
    origin="quanto-core",
    selected="",
    ready=True,
    status="ready",
)
FAST = replace(
    REFERENCE,
    name="acme_backend.linear_int4_by_group",
    device="cpu",
    qtypes=("int4", "mxfp4"),
    activations=("floating",),
    dtypes=("bfloat16", "float16"),
    priority=100,
    origin="acme-backend",
)
SENTENCE = "the matrix unit of this processor is switched off by the operating system, which a newer one would not do"
REFUSED = replace(FAST, name="acme_backend.other", ready=False, status=SENTENCE)
SCALED = replace(
    FAST,
    name="acme_backend.scaled",
    op="scaled_linear",
    activations=("int8",),
    dtypes=("bfloat16", "float16", "float32"),
)
KERNELS = (
    replace(REFERENCE, name="reference.pack", op="pack"),
    FAST,
    REFUSED,
    REFERENCE,
    SCALED,
    replace(REFERENCE, name="reference.scaled_linear", op="scaled_linear"),
    replace(REFERENCE, name="reference.embedding", op="embedding"),
)


def drawn(kernels: tuple[KernelReport, ...], width: int, every: bool = False) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    for table in kernel_table.tables(kernels, width, every):
        console.print(table.rich(width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_pipe_gets_one_whole_line_per_kernel() -> None:
    (table,) = kernel_table.tables(KERNELS, None)
    lines = table.plain().splitlines()
    assert len(lines) == 2 + len(KERNELS)
    assert lines[4].split() == [
        *("linear", "acme_backend.other", "cpu", "int4,", "mxfp4", "bfloat16,", "float16", "100", "acme-backend"),
        *SENTENCE.split(),
    ]
    assert "int8 (bfloat16, float16, float32)" in lines[6]
    assert lines[5].split() == ["linear", "reference.linear", "any", "any", "any", "0", "quanto-core", "ready"]


@pytest.mark.parametrize("width", [80, 120])
def test_usual_terminals_show_everything(width: int) -> None:
    lines = drawn(KERNELS, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    for kernel in (FAST, REFUSED, REFERENCE, SCALED):
        assert f"  {kernel.name} " in text, "whole and unwrapped"
        assert kernel.origin in text
    why = lines.index(next(line for line in lines if line.startswith("kernels that can't be used")))
    assert SENTENCE.split() == [w for line in lines[why + 3 :] for w in line.split() if w != REFUSED.name]


def test_a_wide_terminal_has_one_line_per_kernel() -> None:
    lines = drawn(KERNELS, 120)
    assert lines[3] == "linear"
    assert lines[4].split() == [
        FAST.name,
        "cpu",
        "int4,",
        "mxfp4",
        "x",
        "bf16,",
        "fp16",
        "100",
        "acme-backend",
        "ready",
    ]
    assert lines[5].split()[-1] == "no"
    assert lines[6].split() == ["reference.linear", "any", "anything", "0", "quanto-core", "ready"]
    assert lines[8].split()[2:6] == ["int4,", "mxfp4", "x", "int8"], "all float dtypes need no mention"


def test_a_narrow_terminal_has_two() -> None:
    lines = drawn(KERNELS, 80)
    assert lines[4].split() == [FAST.name, "cpu", "int4,", "mxfp4", "ready"]
    assert lines[5].split() == ["acme-backend,", "priority", "100", "x", "bf16,", "fp16"]


def test_references_that_stand_alone_share_a_line() -> None:
    text = "\n".join(drawn(KERNELS, 120))
    assert "other operators\n  reference.* " in text
    assert "reference.pack" not in text
    whole = "\n".join(drawn(KERNELS, 120, every=True))
    assert "reference.pack" in whole
    assert "reference.*" not in whole


def test_all_ready_needs_no_second_table() -> None:
    assert len(kernel_table.tables((FAST, REFERENCE), 80)) == 1


@pytest.mark.parametrize(
    ("changes", "word", "plain"),
    [
        ({"selected": "forced"}, "forced", "ready, forced by QUANTO_KERNELS"),
        ({"selected": "forced", "ready": False, "status": "no abacus"}, "no", "no abacus, forced by QUANTO_KERNELS"),
        ({"selected": "blocked", "ready": False, "status": "blocked by …"}, "blocked", "blocked by …"),
    ],
)
def test_what_the_environment_chooses(changes: dict[str, object], word: str, plain: str) -> None:
    kernel = replace(FAST, **changes)  # type: ignore[arg-type]
    assert drawn((kernel,), 120)[4].split()[-1] == word
    assert kernel_table.tables((kernel,), None)[0].plain().endswith(f"acme-backend  {plain}")
