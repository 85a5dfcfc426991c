# SPDX-License-Identifier: Apache-2.0
"""`quanto bench`."""

from __future__ import annotations

import json

import pytest

from quanto.cli import main


def test_json(capsys) -> None:
    words = ["bench", "64x128", "--weights", "int8,int4", "--tokens", "1,3", "--seconds", "0.001", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["weights"] for row in found["rows"]] == ["bfloat16", "int8", "int4"]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in found["rows"])
    assert found["rows"][0]["bytes"] == 64 * 128 * 2


def test_table(capsys) -> None:
    assert main(["bench", "32x64", "--weights", "nf4", "--dtype", "float32", "--seconds", "0.001"]) == 0
    assert "16 rows µs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["64"], "a shape is OUTxIN"),
        (["64x0"], "a shape is OUTxIN"),
        (["8x8", "--tokens", "a"], "positive numbers"),
        (["8x8", "--dtype", "int8"], "--dtype must be"),
        (["8x8", "--device", "nonsense"], "--device nonsense"),
        (["8x8", "--weights", "int9"], "int9"),
        (["100000000x1000000"], "100000000x1000000: "),
    ],
)
def test_errors(capsys, words: list[str], message: str) -> None:
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
