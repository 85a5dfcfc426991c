# SPDX-License-Identifier: Apache-2.0
"""`optimum-cli quanto quantize`, as optimum finds it."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from optimum.quanto import QuantizedModelForCausalLM, quantization_map
from optimum.quanto.commands.quantize import add_arguments, run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, word_embed_proj_dim=32
    )
    OPTForCausalLM(config).half().save_pretrained(tmp_path / "float")
    return tmp_path / "float"


def test_the_command(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "quanto", "quantize", "--weights", "int4"]
    done = subprocess.run([*command, "--model", str(model), str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = QuantizedModelForCausalLM.from_pretrained(tmp_path / "out")
    assert read.dtype == torch.float16
    assert {entry["weights"] for entry in quantization_map(read).values()} == {"qint4"}


def quantize(*arguments: str) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args(arguments))


def test_task_and_dtype(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize("-m", str(model), "--task", "text-generation", "--torch_dtype", "bf16", "--weights", "float8", str(out))
    assert QuantizedModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_models_of_other_libraries(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="is a model of diffusers; the command takes transformers"):
        quantize("-m", str(tmp_path), str(tmp_path / "out"))
