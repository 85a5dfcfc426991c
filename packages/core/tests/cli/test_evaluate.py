# SPDX-License-Identifier: Apache-2.0
"""`quanto eval`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import quanto
from quanto.cli import main
from quanto.serialization.foreign import open_model


def test_figures_come_with_their_convention(language_model: Path, text: Path, capsys) -> None:
    words = ["eval", str(language_model), "--data", str(text), "--block", "64", "--blocks", "4"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["perplexity"]
    model, encode = open_model(language_model)
    expected = quanto.eval.perplexity(model, encode(text.read_text())[:256], block=64)
    assert found["value"] == pytest.approx(expected.value)
    assert main(words) == 0
    assert "4 blocks of 64 tokens" in capsys.readouterr().out


def test_against_the_float_model(language_model: Path, text: Path, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    assert main(["quantize", str(language_model), "-o", out, "--weights", "int8"]) == 0
    capsys.readouterr()
    words = ["eval", out, "--data", str(text), "--block", "64", "--against", str(language_model)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["divergence"]
    assert 0 < found["mean"] < 1e-3
    assert main(words) == 0
    assert "same top token" in capsys.readouterr().out


def test_too_little_text_and_unknown_folders(language_model: Path, text: Path, tmp_path: Path, capsys) -> None:
    assert main(["eval", str(language_model), "--data", str(text), "--block", "99999"]) == 2
    assert main(["eval", str(tmp_path), "--data", str(text)]) == 2
    one, two = capsys.readouterr().err.splitlines()
    assert "at least 99999 are needed" in one
    assert "no installed package knows how to run this model" in two
