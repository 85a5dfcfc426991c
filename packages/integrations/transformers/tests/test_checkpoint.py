# SPDX-License-Identifier: Apache-2.0
"""Folders that core's command line writes, as transformers reads them; and the other way round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import auto_class, run
from transformers import AutoConfig, AutoModelForCausalLM

import quanto
from quanto.cli import main
from quanto_transformers import QuantoConfig
from quanto_transformers.checkpoint import Checkpoint

IDS = torch.arange(3, 27).view(2, 12)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("weights", ["int4", "int8", "nf4"])
def test_the_command_line_writes_what_from_pretrained_would(
    saved: Callable[..., Path], tmp_path: Path, name: str, weights: str
) -> None:
    folder = saved(name)
    assert main(["quantize", str(folder), "-o", str(tmp_path / "out"), "--weights", weights]) == 0
    expected = AutoModelForCausalLM.from_pretrained(folder, quantization_config=QuantoConfig(weights))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(found), logits(expected))
    names = [
        sorted(n for n, m in model.named_modules() if isinstance(m, quanto.nn.QModule)) for model in (found, expected)
    ]
    assert names[0] == names[1]


def test_a_name_on_the_hub_is_found_in_its_cache(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    words = ["--weights", "int4", "-o", str(tmp_path / "out")]
    assert main(["quantize", "someone/tiny", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("quanto: error: someone/tiny is no folder here, and the hub has no answer: ")
    assert error.count("\n") == 1
    commit, repository = "0" * 40, tmp_path / "cache" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(saved("llama"), repository / "snapshots" / commit)
    assert main(["quantize", "someone/tiny", *words]) == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "llama"


def test_old_names_of_the_command_line_find_their_modules(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Files of ViT keep the names that its modules had in older versions; the command line knows no others."""
    assert main(["quantize", str(saved("vit")), "-o", str(tmp_path / "out"), "--weights", "int8"]) == 0
    found = auto_class("vit").from_pretrained(tmp_path / "out")
    floating = auto_class("vit").from_pretrained(saved("vit"))
    assert {n for n, m in floating.named_modules() if isinstance(m, torch.nn.Linear) and "layer" in n} <= {
        n for n, m in found.named_modules() if isinstance(m, quanto.nn.QModule)
    }
    expected = run(floating, "vit")
    assert (run(found, "vit") - expected).norm() < 0.05 * expected.norm()
    found.save_pretrained(tmp_path / "again")
    assert torch.equal(run(auto_class("vit").from_pretrained(tmp_path / "again"), "vit"), run(found, "vit"))


def test_modules_that_the_model_lacks_are_an_error(saved: Callable[..., Path], tmp_path: Path) -> None:
    auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig()).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('_proj"', '_projection"'))
    with pytest.raises(ValueError, match=r"has no module of those .* such as 'model\.layers\.0\.self_attn\.q_proj"):
        auto_class("llama").from_pretrained(tmp_path)


def test_core_loads_what_save_pretrained_wrote(saved: Callable[..., Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved("llama"), quantization_config=QuantoConfig("int4"))
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(saved("llama"))
    found = quanto.load(tmp_path, AutoModelForCausalLM.from_config(config))
    assert torch.equal(logits(found), logits(model))


def test_what_a_folder_is(saved: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    assert checkpoint.accepts(saved("llama"))
    assert not checkpoint.detect(saved("llama"))
    assert not checkpoint.accepts(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    assert not checkpoint.detect(tmp_path)
    (tmp_path / "config.json").write_text("[")
    assert not checkpoint.accepts(tmp_path)


def test_a_folder_without_a_language_model_is_named(saved: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ValueError, match="can't be opened"):
        Checkpoint().open(tmp_path)


def test_static_scales_of_the_command_line_arrive(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("llama")
    monkeypatch.setattr(Checkpoint, "open", lambda self, path: (AutoModelForCausalLM.from_pretrained(path), _bytes))
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 20)
    words = ["--weights", "w8a8-static", "--data", str(tmp_path / "text.txt"), "--samples", "4", "--length", "16"]
    assert main(["quantize", str(folder), "-o", str(tmp_path / "out"), *words]) == 0
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    layers = [m for m in found.modules() if isinstance(m, quanto.nn.QModule) and m.quantizes_input]
    assert layers
    assert all(layer.input_scale is not None and layer.input_scale > 0 for layer in layers)
    again = quanto.load(tmp_path / "out", AutoModelForCausalLM.from_pretrained(folder))
    assert torch.equal(logits(found), logits(again))
    assert main(["eval", str(tmp_path / "out"), "--data", str(tmp_path / "text.txt"), "--block", "16"]) == 0


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode())) % 32
