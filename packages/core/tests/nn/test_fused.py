# SPDX-License-Identifier: Apache-2.0
"""Transformer encoders call their quantized modules, also where torch would fuse the float ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quanto

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
PADDED = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])


def _layer() -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)


BUILD: dict[str, Any] = {"layer": _layer, "encoder": lambda: nn.TransformerEncoder(_layer(), 2)}


def _infer(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(X, src_key_padding_mask=PADDED)[~PADDED]  # type: ignore[no-any-return]


@pytest.mark.parametrize("exclude", [(), ("*self_attn*",)])
@pytest.mark.parametrize("name", BUILD)
def test_trainable_weights_are_rounded_in_evaluation(name: str, exclude: tuple[str, ...]) -> None:
    model = quanto.quantize(BUILD[name]().eval(), "int4", exclude=exclude)
    trainable = _infer(model)
    with torch.enable_grad():
        torch.testing.assert_close(trainable, model(X, src_key_padding_mask=PADDED)[~PADDED])
    torch.testing.assert_close(trainable, _infer(quanto.freeze(copy.deepcopy(model))))


@pytest.mark.parametrize("name", BUILD)
def test_a_loaded_model_is_rounded_too(name: str, tmp_path: Path) -> None:
    model = quanto.quantize(BUILD[name]().eval(), "int4")
    quanto.save(model, tmp_path)
    torch.testing.assert_close(_infer(quanto.load(tmp_path, BUILD[name]().eval())), _infer(quanto.freeze(model)))


@pytest.mark.parametrize("name", BUILD)
def test_going_back_gives_back_the_switch(name: str) -> None:
    model = BUILD[name]().eval()
    before = [dict(vars(m)) for m in model.modules()]
    quanto.quantize(quanto.quantize(model, "int4"), "int8")
    quanto.dequantize(quanto.freeze(model))
    for module, attributes in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys()
        for switch in ("activation_relu_or_gelu", "use_nested_tensor"):
            assert vars(module).get(switch) == attributes.get(switch)


def test_what_holds_nothing_quantized_stays_fused() -> None:
    model = nn.ModuleList([_layer(), nn.Linear(16, 16)])
    quanto.quantize(model, "int8", include="1")
    assert model[0].activation_relu_or_gelu == 1
