# SPDX-License-Identifier: Apache-2.0
"""`quanto tune`: what it plans, what it refuses, what it writes."""

from __future__ import annotations

import json

import pytest
import torch

from quanto.cli import main
from quanto_backend_cuda.ops.trial import Trial
from quanto_backend_cuda.tables import Tile, read_user_table
from quanto_backend_cuda.tune.command import merged, plan, served, write
from quanto_backend_cuda.tune.problem import Problem
from quanto_backend_cuda.tune.search import Found


def test_plans_every_problem_few_tokens_first() -> None:
    found = plan(["int4", "int8"], ["64x128", "4096x14336"], [16, 1], activations=False)
    assert [(p.m, p.n, p.k, p.qtype, p.group) for p in found[:4]] == [
        (1, 64, 128, "int4", 128),
        (1, 64, 128, "int8", 0),
        (1, 4096, 14336, "int4", 128),
        (1, 4096, 14336, "int8", 0),
    ]
    assert [p.m for p in found] == [1] * 4 + [16] * 4
    assert {p.kernel for p in plan(["int4"], ["64x128"], [1], activations=True)} == {"scaled"}


@pytest.mark.parametrize("hopper", [True, False])
@pytest.mark.parametrize(
    ("kernel", "qtype", "group", "tokens", "served_by"),
    [
        ("linear", "int4", 128, 1, "stream"),
        ("linear", "int3", 128, 64, "stream"),
        ("linear", "int4", 128, 65, "specialized"),
        ("linear", "int3", 128, 256, "linear"),
        ("linear", "mxfp4", 32, 1, "linear"),
        ("scaled", "int8", 0, 256, "product"),
        ("scaled", "int8", 0, 64, "scaled"),
        ("scaled", "int4", 0, 256, "scaled"),
    ],
)
def test_tunes_the_kernel_that_runs(
    kernel: str, qtype: str, group: int, tokens: int, served_by: str, hopper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "serves", lambda self, device: hopper)
    problem = Problem(kernel, qtype, group, tokens, 4096, 4096)
    found = served(problem, torch.device("cpu"))
    assert found.kernel == (served_by if hopper else kernel)
    assert (found.qtype, found.m, found.n, found.k) == (qtype, tokens, 4096, 4096)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "int9"], ["--weights int9", "int4"]),
        (["--shape", "4096"], ["--shape 4096", "4096x14336"]),
        (["--shape", "4096x100"], ["--shape 4096x100", "128"]),
        (["--tokens", "0"], ["--tokens 0"]),
        (["--minutes", "0"], ["--minutes"]),
        (["--device", "cpu"], ["--device cpu"]),
        (["--weights", "nf4", "--activations"], ["--weights nf4", "with activations"]),
    ],
)
def test_bad_options_are_named(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    for word in words:
        assert word in said


def test_help_is_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--minutes" in out
    assert len(out.splitlines()) < 40


def found(m: int, bn: int) -> Found:
    return Found(Problem("linear", "int4", 128, m, 64, 128), 2.0, Tile(bn, 16), 1.0, 3, 0)


def test_new_rows_replace_those_of_the_same_problem(tmp_path) -> None:
    path = tmp_path / "deep" / "tiles.json"
    write(path, merged({"other-gpu": {}}, "my-gpu", [found(1, 16), found(2, 16)]))
    table = merged(read_user_table(path), "my-gpu", [found(2, 32)])
    write(path, table)
    rows = read_user_table(path)["my-gpu"]["linear/int4"]
    assert [(r["m"], r["tile"]["bn"]) for r in rows] == [(1, 16), (2, 32)]
    assert list(json.loads(path.read_text())) == ["other-gpu", "my-gpu"]
    assert [p.name for p in path.parent.iterdir()] == ["tiles.json"]


@pytest.mark.gpu
def test_tunes(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiles.json"
    options = ["--weights", "int4", "--shape", "256x512", "--tokens", "1", "--minutes", "0.5"]
    assert main(["tune", *options, "--output", str(path)]) == 0
    kernel = served(Problem("linear", "int4", 128, 1, 256, 512), torch.device("cuda", 0)).kernel
    assert f"{kernel} int4 256x512, 1 token" in capsys.readouterr().out
    (rows,) = read_user_table(path).values()
    assert rows[f"{kernel}/int4"][0]["m"] == 1
    torch.cuda.synchronize()
