# SPDX-License-Identifier: Apache-2.0
"""`quanto inspect`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from quanto.cli import main


@pytest.fixture
def quantized(language_model: Path, tmp_path: Path, capsys) -> Path:
    assert main(["quantize", str(language_model), "-o", str(tmp_path / "out"), "--weights", "int4"]) == 0
    capsys.readouterr()
    return tmp_path / "out"


def test_table(quantized: Path, language_model: Path, capsys) -> None:
    assert main(["inspect", str(quantized), "--against", str(language_model)]) == 0
    out = capsys.readouterr().out
    assert "blocks.1.2  int4    32×64" in out
    assert "quantized weights     8,192, " in out


def test_json(quantized: Path, language_model: Path, capsys) -> None:
    assert main(["inspect", str(quantized), "--json"]) == 0
    assert [layer["sqnr"] for layer in json.loads(capsys.readouterr().out)["layers"]] == [None] * 4
    assert main(["inspect", str(quantized), "--json", "--against", str(language_model)]) == 0
    found = [layer["sqnr"] for layer in json.loads(capsys.readouterr().out)["layers"]]
    assert all(15 < value < 30 for value in found)  # int4 of uniform weights: near 24


def test_chart(quantized: Path, language_model: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "chart.png"
    assert main(["inspect", str(quantized), "--chart", str(path)]) == 2
    assert "needs --against" in capsys.readouterr().err
    status = main(["inspect", str(quantized), "--chart", str(path), "--against", str(language_model)])
    assert (status, path.exists()) == ((0, True) if find_spec("matplotlib") else (2, False))


def test_no_quantized_folder(tmp_path: Path, capsys) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds no quanto.json" in capsys.readouterr().err
