# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts layers: computed by the grouped operator, saved as the family publishes its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from tiny import MOE, build, run
from torch import nn

import quanto
from quanto.algorithms import GPTQ
from quanto.algorithms.step import as_float
from quanto.nn import QParameters
from quanto.nn.registry import convert
from quanto_transformers import QuantoConfig, experts
from quanto_transformers.moe import QExperts

Saved = Callable[..., Path]


def load(folder: Path, config: Any = None) -> Any:
    given = {} if config is None else {"quantization_config": config}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **given)


def names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def _plain(folder: Path) -> set[str]:
    """Names in a checkpoint; Mixtral's are published with another name for `mlp`."""
    return {name.replace("block_sparse_moe", "mlp") for name in names(folder)}


def layers(model: nn.Module) -> list[QExperts]:
    return [module for module in model.modules() if isinstance(module, QExperts)]


@pytest.mark.parametrize("name", MOE)
def test_nearly_all_of_a_model_is_quantized(name: str, saved: Saved) -> None:
    model = load(saved(name), QuantoConfig("int4"))
    assert len(layers(model)) == 2
    held = {n for n, p in model.named_parameters() if p.is_floating_point() and not n.endswith("_scale")}
    assert not [n for n in held if "expert" in n and "bias" not in n and "router" not in n]
    assert [n for n in held if "router" in n or n.endswith("mlp.gate.weight")]


@pytest.mark.parametrize("weights", ["int8", "int4", "float8", "nvfp4"])
@pytest.mark.parametrize("name", MOE)
def test_computes_what_the_dequantized_layer_does(name: str, weights: str, saved: Saved) -> None:
    """Against transformers' own forward, expert by expert, on the values of the codes."""
    quantized = load(saved(name), QuantoConfig(weights))
    x = torch.randn(9, 64)
    index = torch.tensor([[0, 1], [1, 2], [2, 0]] * 3)  # the last expert has no token
    weight = torch.rand(9, 2)
    routing = () if name == "llama4" else (index, weight)
    x = torch.randn(4 * 9, 64) if name == "llama4" else x
    found = [layer(x, *routing) for layer in layers(quantized)]
    floating = quantized.dequantize()
    floating.config._experts_implementation = "eager"
    modules = [m for m in floating.modules() if experts.arrangements(m) is not None]
    for y, module in zip(found, modules, strict=True):
        torch.testing.assert_close(y, module(x, *routing), atol=1e-4, rtol=1e-4)


def test_tokens_of_other_ranks_add_nothing(saved: Saved) -> None:
    """Expert parallelism marks them by an index that is no expert's."""
    layer = layers(load(saved("mixtral"), QuantoConfig()))[0]
    x, weight = torch.randn(3, 64), torch.ones(3, 2)
    index = torch.tensor([[0, 1], [4, 2], [4, 4]])
    y = layer(x, index, weight)
    assert torch.equal(y[2], torch.zeros(64))
    torch.testing.assert_close(y[1:2], layer(x[1:2], torch.tensor([[2]]), weight[:1, :1]))
    assert layer(x[:0], index[:0], weight[:0]).shape == (0, 64)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
@pytest.mark.parametrize("weights", ["int8", "int4", "nvfp4"])
def test_saved_expert_by_expert(name: str, weights: str, saved: Saved, tmp_path: Path) -> None:
    model = load(saved(name), QuantoConfig(weights))
    model.save_pretrained(tmp_path / "a")
    held = names(tmp_path / "a")
    floating = {n for n in names(saved(name)) if ".experts." in n}
    parts = {"int8": ["scale"], "int4": ["scale", "zero_point"], "nvfp4": ["scale"]}[weights]
    expected = {f"{n}_{part}" for n in floating for part in ["packed", *parts]}
    assert expected <= held
    shared = {n for n in held - expected if "experts" in n}  # one for all experts
    assert all(n.endswith("_proj_global_scale") for n in shared)
    assert len(shared) == (4 if weights == "nvfp4" else 0)
    again = load(tmp_path / "a")
    assert torch.equal(run(again, name), run(model, name))
    again.save_pretrained(tmp_path / "b")
    assert names(tmp_path / "b") == held
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj_packed" in names(tmp_path / "fused")
    assert torch.equal(run(load(tmp_path / "fused"), name), run(model, name))


@pytest.mark.parametrize("options", [{"granularity": "tensor"}, {"block": [16, 16]}], ids=str)
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_scales_that_span_rows(name: str, options: dict, saved: Saved, tmp_path: Path) -> None:
    """They cannot be cut like rows: saved as in the model."""
    rules = {"*.experts": {"weights": "int8", **options}}
    model = load(saved(name), QuantoConfig(rules=rules))
    expected = run(build(name), name)
    assert (run(model, name) - expected).norm() / expected.norm() < 0.1
    model.save_pretrained(tmp_path)
    assert any(n.endswith("layers.0.mlp.experts.down_proj_scale") for n in _plain(tmp_path))
    assert torch.equal(run(load(tmp_path), name), run(model, name))


def test_some_layers_only(saved: Saved, tmp_path: Path) -> None:
    model = load(saved("mixtral"), QuantoConfig(modules_to_not_convert=["layers.0.mlp.experts"]))
    assert len(layers(model)) == 1
    model.save_pretrained(tmp_path)
    held = _plain(tmp_path)
    assert "model.layers.0.mlp.experts.3.w1.weight" in held
    assert {f"model.layers.1.mlp.experts.3.w1.weight_{part}" for part in ("packed", "scale")} <= held
    assert torch.equal(run(load(tmp_path), "mixtral"), run(model, "mixtral"))


@pytest.mark.parametrize("name", MOE)
@pytest.mark.parametrize("qat", [False, True])
def test_gradients_reach_what_is_before(name: str, qat: bool, saved: Saved) -> None:
    model = load(saved(name), QuantoConfig("int8", qat=qat))
    embeddings = model.get_input_embeddings().weight
    embeddings.requires_grad_(True)
    ids = torch.arange(3, 12)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    found = embeddings.grad
    reference = build(name)
    reference(input_ids=ids, labels=ids).loss.backward()
    expected = reference.get_input_embeddings().weight.grad
    assert (found - expected).norm() / expected.norm() < 0.2
    if qat:
        weight = layers(model)[0].down_proj
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0


def test_compiles_whole(saved: Saved) -> None:
    layer = layers(load(saved("qwen3-moe"), QuantoConfig("int4")))[0]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for tokens in (5, 6, 7):
        x, index = torch.randn(tokens, 64), torch.randint(0, 4, (tokens, 2))
        weight = torch.rand(tokens, 2)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, index, weight), layer(x, index, weight))


class JetMoeLikeExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([nn.functional.linear(x, self.weight[e]) for e in range(3)])


def test_other_experts_keep_their_forward() -> None:
    module = JetMoeLikeExperts()
    assert experts.arrangements(module) == {"weight": "rows"}
    assert not experts.runs_grouped(module)
    from quanto_transformers import skeleton
    from quanto_transformers.selection import Choice

    x = torch.randn(5, 16)
    expected = module(x)
    choice = Choice("m", module, QuantoConfig().scheme, experts.arrangements(module))
    ((_, made),) = skeleton.build([choice], trainable=False)
    assert isinstance(made, QParameters)
    assert not isinstance(made, QExperts)
    torch.testing.assert_close(made(x), expected, atol=0.2, rtol=0)


@pytest.mark.parametrize("name", MOE)
def test_every_expert_is_calibrated(name: str, saved: Saved) -> None:
    """The model loses less by GPTQ than by rounding, and nothing while its weights are still floats."""
    floating, rounded, found = (load(saved(name)).eval() for _ in range(3))
    for model in (rounded, found):
        for module in list(model.modules()):
            arranged = experts.arrangements(module)
            if arranged is not None:
                convert(module, QExperts).init_quantized(quanto.Scheme("int3", group_size=32), arranged)
        assert len(layers(model)) == 2
    batches = [torch.randint(0, 320, (4, 64), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    with torch.no_grad():
        before = floating(batches[0]).logits
        with as_float(rounded):
            torch.testing.assert_close(rounded(batches[0]).logits, before, atol=1e-4, rtol=1e-4)
    quanto.Pipeline().run(rounded, batches)
    quanto.Pipeline(GPTQ(correct=0)).run(found, batches)
    assert all(layer.frozen for layer in layers(found))
    with torch.no_grad():
        error, least = (
            sum((m(b).logits - floating(b).logits).square().sum() for b in batches) for m in (found, rounded)
        )
    assert error < 0.9 * least
