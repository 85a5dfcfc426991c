# SPDX-License-Identifier: Apache-2.0
"""The pipeline: block by block through chains and through anything else, and what it leaves behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.algorithms import AutoRound, Block, Pipeline, SmoothQuant, Step, Tune, calibrate_weights, generate_samples
from quanto.nn.base import QModule


class _Notes(Step):
    """Writes down what it sees."""

    needs_original = True

    def __init__(self) -> None:
        self.names: list[str] = []
        self.layers: list[list[str]] = []
        self.inputs: list[torch.Tensor] = []
        self.compares: list[bool] = []

    def apply(self, block: Block) -> None:
        self.names.append(block.name)
        self.layers.append(list(block.layers()))
        self.inputs.append(block.inputs.values[0])
        self.compares.append(block.originals is not block.inputs)


def test_goes_through_a_chain_and_ends_with_the_rest(tiny: Any, batches: list[torch.Tensor]) -> None:
    notes, model = _Notes(), tiny()
    quanto.quantize(model, "int8")
    Pipeline(notes).run(model, batches)
    assert notes.names == ["blocks.0", "blocks.1", "blocks.2", ""]
    assert notes.layers[:3] == [["gate", "up", "down"]] * 3
    assert notes.layers[3] == ["model.head"]
    assert notes.compares == [True, True, True, False]  # a head is not worth a copy of the whole model
    assert all(m.frozen for m in model.modules() if isinstance(m, quanto.nn.QModule))
    # What a block is given went through the quantized blocks before it.
    with torch.no_grad():
        x = model.embed(batches[0])
        for block, given in zip(model.blocks, notes.inputs, strict=False):
            torch.testing.assert_close(given, x, rtol=1e-5, atol=1e-5)
            (x,) = block(x, factor=0.5)


def test_one_float_copy_serves_until_a_step_changes_the_block(tiny: Any, batches: list[torch.Tensor]) -> None:
    class Keep(Step):
        needs_original = True
        kept: list[tuple[Any, Any]]

        def apply(self, block: Block) -> None:
            copied = block.copied
            block.keep_original()
            self.kept.append((block.original, copied))

    first, second = Keep(), Keep()
    first.kept, second.kept = [], []
    Pipeline(first, SmoothQuant(0.5), second).run(quanto.quantize(tiny(), "int8", include="blocks.*"), batches)
    assert all(original is copied for original, copied in first.kept)
    assert [copied for _, copied in second.kept] == [None] * 3
    for (one, _), (other, _) in zip(first.kept, second.kept, strict=True):
        assert not torch.equal(one.norm.weight, other.norm.weight)  # smoothed


def test_without_steps_it_is_freeze(tiny: Any, batches: list[torch.Tensor]) -> None:
    one, other = (quanto.quantize(tiny(), "int4", group_size=32) for _ in range(2))
    quanto.freeze(one)
    assert Pipeline().run(other, batches) is other
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_sequences_of_layers() -> None:
    notes = _Notes()
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    calibrate_weights(quanto.quantize(model, "int8"), [torch.randn(4, 16)], [notes])
    assert notes.names == ["0", "2"]


class _Crossed(nn.Module):
    """Its layers lie in a list and are called in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, *, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers[0](self.layers[1](x))
        return y


def test_what_is_no_chain_is_one_block() -> None:
    notes = _Notes()
    model = quanto.quantize(_Crossed(), "int8")
    Pipeline(notes, "gptq").run(model, [{"x": torch.randn(4, 16)}])
    assert notes.names == [""]
    assert notes.compares == [True]
    assert model.layers[0].frozen
    assert model(x=torch.randn(2, 16)).isfinite().all()


def test_batches_of_every_form(tiny: Any, batches: list[torch.Tensor]) -> None:
    states = []
    for form in (lambda b: b, lambda b: (b,), lambda b: {"tokens": b}):
        model = quanto.quantize(tiny(), "int4", group_size=32)
        calibrate_weights(model, (form(b) for b in batches))
        states.append(model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[k], v) for k, v in states[0].items())


def test_experts_that_see_nothing(tiny: Any) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.experts[0](x)

    model = quanto.quantize(nn.Sequential(Experts(), Experts()), "int4")
    Pipeline("gptq").run(model, [torch.randn(8, 16)])
    assert all(e.frozen for block in model for e in block.experts)


def test_trains_on_in_the_mode_it_was(tiny: Any, batches: list[torch.Tensor]) -> None:
    model = quanto.quantize(tiny(), "int8").train()
    model.blocks[1].eval()
    calibrate_weights(model, batches)
    assert model.training
    assert not model.blocks[1].training


def test_refuses_what_it_cannot_do(tiny: Any, batches: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"nothing to calibrate: call quanto.quantize"):
        Pipeline().run(tiny(), batches)
    with pytest.raises(ValueError, match="nothing to calibrate"):
        Pipeline().run(quanto.freeze(quanto.quantize(tiny(), "int8")), batches)
    with pytest.raises(ValueError, match="batches is empty"):
        Pipeline().run(quanto.quantize(tiny(), "int8"), [])
    with pytest.raises(ValueError, match=r"unknown step 'gtpq'; known: .*gptq"):
        Pipeline("gtpq")
    with pytest.raises(TypeError, match="steps must be names or Step objects, got int"):
        Pipeline(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a batch must be a tensor, a tuple or a mapping, got str"):
        Pipeline().run(quanto.quantize(tiny(), "int8"), ["text"])


def test_without_data_the_float_model_draws_its_own(tiny: Any) -> None:
    drawn = generate_samples(tiny(), length=16)
    given, alone = tiny(), tiny()
    for model in (given, alone):
        model.config = SimpleNamespace(max_position_embeddings=16)
        quanto.quantize(model, "int4", group_size=32)
    Pipeline("gptq").run(given, drawn)
    Pipeline("gptq").run(alone)
    for (name, a), b in zip(given.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_model_that_draws_no_text_needs_data() -> None:
    model = quanto.quantize(nn.Sequential(nn.Linear(8, 8)), "int8")
    with pytest.raises(ValueError, match="give batches"):
        Pipeline("gptq").run(model)
    assert not model[0].frozen


class _Encoder(nn.Module):
    """Tokens that attend to both sides under a mask, and one vector for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(32, 8)

    def forward(self, tokens: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        kept = ~padding[..., None]
        out: torch.Tensor = self.head((x * kept).sum(1) / kept.sum(1))
        return out


def test_an_encoder_with_padding(batches: list[torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = _Encoder().eval()
    samples = [{"tokens": b, "padding": torch.arange(32) >= torch.tensor([[32], [20], [9], [5]])} for b in batches]
    errors = []
    for steps in ((), ("gptq",)):
        found = quanto.quantized(model, "int3", group_size=16)
        Pipeline(*steps).run(found, samples) if steps else quanto.freeze(found)
        assert not any(isinstance(m, quanto.nn.QModule) and not m.frozen for m in found.modules())
        with torch.no_grad():
            errors.append(sum(float((found(**s) - model(**s)).square().mean()) for s in samples))
    assert errors[1] < 0.7 * errors[0]


class _Output(dict):  # type: ignore[type-arg]
    """What models of transformers return: a mapping whose values are attributes too."""

    __getattr__ = dict.get


class _Headed(nn.Module):
    """A head outside of the chain, an output object, layers called by name, and one that nothing calls."""

    def __init__(self, inner: nn.Module, logits: bool) -> None:
        super().__init__()
        self.inner, self.logits, self.unused = inner, logits, nn.Linear(64, 64)

    def forward(self, tokens: torch.Tensor) -> _Output:
        x = self.inner.embed(tokens)
        for block in self.inner.blocks:
            (x,) = block(x, factor=0.5)
        y = self.inner.head(input=self.inner.norm(x))
        return _Output(loss=y.sum(), logits=y) if self.logits else _Output(mask=tokens > 3, last_hidden_state=y)


@pytest.mark.parametrize(
    "steps", [("awq",), ("smooth", "gptq"), ("lowrank",), ("gptq", AutoRound(3)), ("gptq", Tune(1))]
)
@pytest.mark.parametrize("logits", [True, False])
def test_models_that_return_objects(
    tiny: Any, batches: list[torch.Tensor], steps: tuple[Any, ...], logits: bool
) -> None:
    model = quanto.quantize(_Headed(tiny(), logits), "int4", group_size=32)
    Pipeline(*steps).run(model, batches)
    assert all(m.frozen for m in model.modules() if isinstance(m, QModule) and m._slots)
    name = "logits" if logits else "last_hidden_state"
    with torch.no_grad():
        wanted = _Headed(tiny(), logits)(batches[0])[name]
        assert (model(batches[0])[name] - wanted).norm() < 0.3 * wanted.norm()


def test_weights_without_numbers_are_named(tiny: Any, batches: list[torch.Tensor]) -> None:
    model = quanto.quantize(tiny(), "int4")
    with torch.no_grad():
        model.blocks[1].up.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"blocks\.1\.up\.weight holds NaN"):
        Pipeline("gptq").run(model, batches)
    model = quanto.quantize(tiny(), "int4")
    with torch.no_grad():
        model.embed.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"blocks\.0\.gate: its inputs have no usable second moments"):
        Pipeline("gptq").run(model, batches)
    with pytest.raises(ValueError, match=r"draws no text .* predicts NaN or infinity"):
        Pipeline("gptq").run(quanto.quantize(model, "int4"))
