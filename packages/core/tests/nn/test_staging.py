# SPDX-License-Identifier: Apache-2.0
"""A model is changed whole or not at all, and keeps the identities that others rely on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.mapping import apply_map
from quanto.nn.staging import Staging
from quanto.ties import untie

CPU, META = torch.device("cpu"), torch.device("meta")


class Model(nn.Module):
    """Linear layers, one under two names, a tied pair, a recurrent layer and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 32)
        self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.BatchNorm1d(32))
        self.again = self.body[0]
        self.rnn = nn.GRU(32, 16, batch_first=True)
        self.head = nn.Linear(32, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.again(self.body(self.embed(tokens).mean(1)))
        return self.head(torch.cat([x[:, :16], self.rnn(x[:, None])[0][:, 0]], 1))


TOKENS = torch.randint(0, 12, (4, 3), generator=torch.Generator().manual_seed(0))


def _model(seed: int) -> Any:
    torch.manual_seed(seed)
    return Model().eval()


def _quantized(seed: int, qtype: str = "int8") -> Any:
    return quanto.freeze(quanto.quantize(_model(seed), qtype, include=["*", "embed"]))


def _load(model: nn.Module, source: nn.Module) -> None:
    staging = Staging(model)
    apply_map(staging.model, quanto.quantization_map(source))
    tensors, aliases = untie(source.state_dict())
    staging.fill({n: t.detach().clone() for n, t in tensors.items()}, aliases)
    staging.commit()


def test_a_staged_model_has_the_structure_and_no_values() -> None:
    model = _model(0)
    before = {n: (id(m), type(m), id(m.__dict__)) for n, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    staged = Staging(model).model
    assert [(n, type(m)) for n, m in staged.named_modules()] == [(n, type(m)) for n, m in model.named_modules()]
    assert all(t.is_meta for t in staged.state_dict().values())
    assert {n: (t.shape, t.dtype) for n, t in staged.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }
    assert staged.again is staged.body[0]  # type: ignore[union-attr, index]
    assert staged.head.weight is staged.embed.weight  # type: ignore[union-attr]
    assert not set(map(id, staged.modules())) & set(map(id, model.modules()))
    quanto.freeze(quanto.quantize(staged, "int4", include=["*", "embed"]))
    staged.train()
    assert before == {n: (id(m), type(m), id(m.__dict__)) for n, m in model.named_modules()}
    assert not model.training
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_quantized_modules_are_staged_with_their_slots() -> None:
    model = _quantized(0)
    staged = Staging(model).model
    assert quanto.quantization_map(staged) == quanto.quantization_map(model)
    slot, its = model.head._slots["weight"], staged.head._slots["weight"]  # type: ignore[union-attr]
    assert slot == its
    its.scheme = quanto.Scheme("int4")
    assert slot.scheme == quanto.Scheme("int8")


def test_commit_hands_everything_over() -> None:
    model, source = _model(0), _quantized(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = {n: id(p) for n, p in model.named_parameters() if n.startswith("rnn") or n == "body.0.bias"}
    modules = {n: id(m) for n, m in model.named_modules()}
    _load(model, source)
    assert torch.equal(model(TOKENS), source(TOKENS))
    assert modules == {n: id(m) for n, m in model.named_modules()}, "each module is the same object"
    assert model.head.weight_packed is model.embed.weight_packed
    assert {n: id(p) for n, p in model.named_parameters() if n in kept} == kept, "float parameters are the same too"
    assert all(a is b for a, b in zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="replaced by codes"):
        optimizer.step()
    assert torch.equal(copy.deepcopy(model)(TOKENS), source(TOKENS))


def test_models_on_meta_are_filled() -> None:
    with torch.device("meta"):
        model: Any = Model().eval()
    source = _quantized(1)
    _load(model, source)
    assert not any(t.is_meta for t in model.state_dict().values())
    assert torch.equal(model(TOKENS), source(TOKENS))


def _missing(state: dict[str, torch.Tensor]) -> None:
    del state["head.weight"]


def _surplus(state: dict[str, torch.Tensor]) -> None:
    state["head.bias"] = torch.zeros(12)


def _shape(state: dict[str, torch.Tensor]) -> None:
    state["rnn.bias_hh_l0"] = torch.zeros(3)


def _split(state: dict[str, torch.Tensor]) -> None:
    state["head.weight"] = state["head.weight"].clone()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_missing, "Missing key.*head.weight"),
        (_surplus, "Unexpected key.*head.bias"),
        (_shape, "size mismatch for rnn.bias_hh_l0"),
        (_split, "'head.weight' and 'embed.weight' are one parameter in the model, and two in what is loaded"),
    ],
)
def test_an_error_changes_nothing(damage: Callable[[dict[str, torch.Tensor]], None], sentence: str) -> None:
    model = _model(0)
    before = {n: (id(p), p.detach().clone()) for n, p in model.named_parameters()}
    classes = [type(m) for m in model.modules()]
    state = dict(_model(1).state_dict())
    damage(state)
    staging = Staging(model)
    with pytest.raises((RuntimeError, ValueError), match=sentence):
        staging.fill(state, {})
    assert classes == [type(m) for m in model.modules()]
    assert {n: id(p) for n, p in model.named_parameters()} == {n: b[0] for n, b in before.items()}
    assert all(torch.equal(p, before[n][1]) for n, p in model.named_parameters())


def test_where_tensors_belong() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"), nn.ReLU())
    staging = Staging(model)
    assert staging.device("0.weight", META) == CPU
    assert staging.device("0.weight_packed", META) == CPU, "beside the other tensors of the module"
    assert staging.device("1.weight", CPU) == CPU
    assert staging.device("1.weight", torch.device("cuda:1")) == torch.device("cuda:1")
    assert staging.device("2.scale", META) == META


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(4)), "'0.weight' has no shape yet: run the model once"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 4))), "module '0' is scripted"),
        (
            lambda: nn.ParameterList([nn.Parameter(quanto.quantize_tensor(torch.ones(4, 4), "int8"), False)]),
            "'0' is a QTensor: load before sharding or wrapping",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")
def test_models_that_cannot_be_staged(build: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Staging(build())


def test_arranged_weights_are_staged_canonical() -> None:
    model, source = (quanto.freeze(quanto.quantize(_model(seed).bfloat16(), "int4", group_size=32)) for seed in (0, 1))
    staged = Staging(model).model
    slots = [m._slots["weight"] for m in staged.modules() if isinstance(m, quanto.nn.QModule)]
    assert {slot.layout for slot in slots} == {"canonical"}
    assert {n: t.shape for n, t in staged.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    _load(model, source)
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in model.state_dict().items())


def test_attributes_of_one_s_own_are_kept_in_step() -> None:
    model = _model(0)
    model.notes = {"ready": True, "constant": torch.ones(2)}
    model.steps = [1, 2]
    notes, steps, constant = model.notes, model.steps, model.notes["constant"]
    quanto.quantize(model, "int8")
    assert "tied to" in model.head.__dict__["_quanto_skipped"]
    _load(model, _quantized(1))
    assert "_quanto_skipped" not in model.head.__dict__, "it is quantized now"
    assert model.notes is notes
    assert model.steps is steps
    assert notes == {"ready": True, "constant": constant}
    assert notes["constant"] is constant
