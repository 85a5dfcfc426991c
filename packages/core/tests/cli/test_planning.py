# SPDX-License-Identifier: Apache-2.0
"""`quanto plan`, and what `quanto quantize` makes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from quanto.cli import main


def words_of(folder: Path, text: Path, *more: str) -> list[str]:
    words = ["plan", str(folder), "--data", str(text), "--length", "64", "--samples", "4"]
    return [*words, "--candidates", "int2,int4,int8", *more]


def test_plan_as_json(language_model: Path, text: Path, tmp_path: Path, capsys) -> None:
    cache = tmp_path / "cache.json"
    assert main(words_of(language_model, text, "--bits", "6.5", "--json", "--cache", str(cache))) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rules"]) == 4
    assert found["bits"] <= 6.5
    assert len(json.loads(cache.read_text())["losses"]) == 4


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reads no TOML")
def test_the_rules_are_those_of_quantize(language_model: Path, text: Path, tmp_path: Path, capsys) -> None:
    rules, out = str(tmp_path / "rules.toml"), str(tmp_path / "out")
    assert main(words_of(language_model, text, "--bits", "6.5", "-o", rules)) == 0
    assert "this plan: at most 6.5 bits per weight" in capsys.readouterr().out
    assert main(["quantize", str(language_model), "-o", out, "--rules", rules]) == 0
    capsys.readouterr()
    assert main(["inspect", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits"] <= 6.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give one budget"),
        (["--bits", "4", "--size", "9"], "give one budget"),
        (["--bits", "1"], "below the smallest"),
    ],
)
def test_errors(language_model: Path, text: Path, capsys, more: list[str], message: str) -> None:
    assert main(words_of(language_model, text, *more)) == 2
    assert message in capsys.readouterr().err
