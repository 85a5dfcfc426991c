# SPDX-License-Identifier: Apache-2.0
"""`quanto eval`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import quanto
from quanto.cli import main
from quanto.serialization.foreign import open_model
from quanto.serialization.formats import formats


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


def test_other_kinds_of_models(tmp_path: Path, monkeypatch, capsys) -> None:
    logits = torch.eye(3)
    able = SimpleNamespace(
        detect=lambda folder: False,
        accepts=lambda folder: (folder / "classes").exists(),
        task=lambda folder: quanto.eval.Task("classifier", lambda examples: logits[: len(examples)]),
    )
    monkeypatch.setitem(formats, "classes", able)
    (tmp_path / "classes").write_text("")
    data = tmp_path / "list.jsonl"
    data.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 2}\n')
    words = ["eval", str(tmp_path), "--data", str(data), "--against", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: figure["correct"] for name, figure in found.items()} == {
        "accuracy": 1,
        "accuracy of the reference": 1,
        "agreement": 2,
    }
    assert main(words) == 0
    assert "accuracy: 50.00% (label is the highest logit, 1 of 2)" in capsys.readouterr().out
    data.write_text("{")
    assert main(words) == 2
    assert "line 1" in capsys.readouterr().err


def test_what_a_model_cannot_run_is_said(language_model: Path, text: Path, tmp_path: Path, capsys) -> None:
    assert main(["eval", str(language_model), "--data", str(text), "--block", "200000"]) == 2
    assert "--block 200000 is too long: the model takes 100000 tokens" in capsys.readouterr().err
    model, _ = open_model(language_model)
    quanto.save(quanto.freeze(quanto.quantize(model, scheme=quanto.Scheme.of("w8a8-static"))), tmp_path / "static")
    (tmp_path / "static" / "bytes.json").write_text("{}")
    assert main(["eval", str(tmp_path / "static"), "--data", str(text)]) == 2
    assert "blocks.0.0 has static activations and no scale for them" in capsys.readouterr().err
