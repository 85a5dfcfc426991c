# SPDX-License-Identifier: Apache-2.0
"""Models that core has quantized are saved as those that were loaded with a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import auto_class, build, run

import quanto
from quanto.nn import QModule

RAW = quanto.Rule("*.experts", quanto.Scheme("int8"), ("gate_up_proj", "down_proj"))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("llama", {"weights": "int4", "exclude": "lm_head"}),
        ("llama", {"weights": "int8", "activations": "int8", "rules": {"*.down_proj": "nf4"}}),
        ("qwen3-moe", {"weights": "int4", "rules": [RAW]}),
    ],
)
def test_it_is_loaded_as_it_was(tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    model = quanto.freeze(quanto.quantize(build(name), **how)).eval()
    expected = run(model, name)
    model.save_pretrained(tmp_path)
    again = auto_class(name).from_pretrained(tmp_path)
    schemes = [{n: m.scheme for n, m in each.named_modules() if isinstance(m, QModule)} for each in (model, again)]
    assert schemes[0] == schemes[1]
    assert torch.equal(run(again, name), expected)


def test_what_is_trained_still_is_loaded_trainable(tmp_path: Path) -> None:
    model = quanto.quantize(build("llama"), "int4").eval()
    model.save_pretrained(tmp_path)
    again = auto_class("llama").from_pretrained(tmp_path)
    assert not again.model.layers[0].mlp.up_proj.frozen
    assert torch.equal(run(again, "llama"), run(model, "llama"))


def test_floating_models_are_left_alone(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path)
    assert getattr(model, "hf_quantizer", None) is None
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
