# SPDX-License-Identifier: Apache-2.0
"""The verbs: which modules `quantize` takes, and what freezing and going back keep."""

from __future__ import annotations

import copy
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.nn import QEmbedding, QLinear, QModule, base

G = torch.Generator().manual_seed(0)
TOKENS = torch.randint(0, 20, (4, 6), generator=G)


class Model(nn.Module):
    """An embedding, two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        blocks = [
            nn.ModuleDict(
                {"up": nn.Linear(32, 64), "act": nn.GELU(), "down": nn.Linear(64, 32), "norm": nn.LayerNorm(32)}
            )
            for _ in range(2)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(32, 20)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block["norm"](x + block["down"](block["act"](block["up"](x))))  # type: ignore[index]
        return self.head(x)


def _model() -> Any:
    torch.manual_seed(0)
    return Model().eval()


def _schemes(model: nn.Module) -> dict[str, str]:
    return {n: m.scheme.weights for n, m in model.named_modules() if isinstance(m, QModule) and m._slots}


LINEARS = ["blocks.0.down", "blocks.0.up", "blocks.1.down", "blocks.1.up", "head"]


# -- which modules -----------------------------------------------------------------------------------------------------


def test_the_default_takes_linear_layers_and_no_embedding() -> None:
    model = _model()
    assert quanto.quantize(model, "int8") is model
    assert sorted(_schemes(model)) == LINEARS
    assert type(model.embed) is nn.Embedding
    assert type(model.blocks[0]["norm"]) is nn.LayerNorm


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": "head"}, ["head"]),
        ({"include": ["blocks.0.*", "head"]}, ["blocks.0.down", "blocks.0.up", "head"]),
        ({"include": ["*", "embed"]}, [*LINEARS[:4], "embed", "head"]),
        ({"include": "e*"}, ["embed"]),
        ({"exclude": "head"}, LINEARS[:4]),
        ({"exclude": ["*.up", "*.down"]}, ["head"]),
        ({"exclude": "nothing.like.it"}, LINEARS),
        ({"include": "blocks.*", "exclude": "*.up"}, ["blocks.0.down", "blocks.1.down"]),
    ],
)
def test_include_and_exclude(options: dict[str, Any], expected: list[str]) -> None:
    assert sorted(_schemes(quanto.quantize(_model(), "int8", **options))) == expected


RULES: dict[str, Any] = {
    "glob": ("blocks.*.up", "int4"),
    "regex as a string": (r"re:blocks\.\d\.up", "int4"),
    "compiled regex": (re.compile(r"blocks\.\d+\.up"), "int4"),
    "callable": (lambda name, module: isinstance(module, nn.Linear) and module.out_features == 64, "int4"),
    "rule": quanto.Rule("*.up", quanto.Scheme("int4")),
    "mapping": {"blocks.0.up": "int4", "blocks.1.up": {"weights": "int4"}},
}


@pytest.mark.parametrize("kind", RULES)
def test_rules(kind: str) -> None:
    rules = RULES[kind] if isinstance(RULES[kind], dict) else [RULES[kind]]
    alone = quanto.quantize(_model(), rules=rules)
    assert _schemes(alone) == {"blocks.0.up": "int4", "blocks.1.up": "int4"}
    beside = quanto.quantize(_model(), "int8", rules=rules)
    assert _schemes(beside) == {n: "int4" if n.endswith("up") else "int8" for n in LINEARS}


def test_the_first_rule_that_matches_decides() -> None:
    rules = [("blocks.0.*", None), ("*.up", "int4"), ("*", "float8"), ("head", "int3"), (r"re:hea.", "int2")]
    model = quanto.quantize(_model(), "int8", rules=rules, exclude="blocks.1.down")
    assert _schemes(model) == {"blocks.1.up": "int4", "head": "float8_e4m3fn", "embed": "float8_e4m3fn"}


def test_a_regex_matches_whole_names() -> None:
    with pytest.raises(ValueError, match="the rule 'blocks' matches no module; names near it are 'blocks"):
        quanto.quantize(nn.ModuleDict({"blocks0": nn.Linear(2, 2)}), rules={"re:blocks": "int8"})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rules": {"blocks.*.upp": "int8"}}, r"the rule 'blocks\.\*\.upp' matches no module; .*'blocks\.1\.up'"),
        ({"rules": {"haed": "int8"}}, "the rule 'haed' matches no module; names near it are 'head'"),
        ({"rules": {"re:lm_head": None}, "weights": "int8"}, "the rule 'lm_head' matches no module; .*'head'"),
        ({"rules": [(lambda name, module: False, "int8")]}, "the rule <function .* matches no module"),
        ({"include": ["head", "embd"], "weights": "int8"}, "include='embd' matches no module; .*'embed'"),
        ({"rules": {"re:[": "int8"}}, r"rule 're:\[' is not a regular expression"),
    ],
)
def test_what_matches_nothing_is_an_error(options: dict[str, Any], sentence: str) -> None:
    model = _model()
    with pytest.raises(ValueError, match=sentence):
        quanto.quantize(model, **options)
    assert not _schemes(model), "and nothing is quantized"


def test_a_lone_module_has_no_names_to_offer() -> None:
    with pytest.raises(ValueError, match="include='head' matches no module; the model has no submodules"):
        quanto.quantize(nn.Linear(2, 2), "int8", include="head")


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({}, ValueError, "say what to quantize to: weights='int8'"),
        ({"weights": "int8", "scheme": "w8a8"}, ValueError, "give either a scheme or weights"),
        ({"scheme": "w8a8", "group_size": 32}, ValueError, "give either a scheme or weights"),
        ({"activations": "int8"}, ValueError, "give weights too"),
        (
            {"weights": "int8", "groupsize": 32},
            TypeError,
            r"quantize\(\) got an unexpected keyword argument 'groupsize'",
        ),
        ({"weights": "int7"}, ValueError, "int7"),
        ({"scheme": "w4a17"}, ValueError, "w4a17"),
        ({"weights": "int8", "symmetric": False, "algorithm": "absmax"}, ValueError, None),
        ({"weights": "int8", "dynamic": True}, ValueError, "dynamic is about activations"),
    ],
)
def test_conflicting_arguments(arguments: dict[str, Any], error: type[Exception], sentence: str | None) -> None:
    model = _model()
    with pytest.raises(error, match=sentence):
        quanto.freeze(quanto.quantize(model, **arguments))


@pytest.mark.parametrize("weights", ["int8", quanto.qint8, None])
def test_ways_to_say_it(weights: Any) -> None:
    scheme = quanto.Scheme("int8") if weights is None else None
    model = quanto.quantize(_model(), weights, scheme=scheme, progress=False)
    assert model.head.scheme == quanto.Scheme("int8")  # type: ignore[union-attr]
    preset = quanto.quantize(_model(), scheme="w8a8-static")
    assert preset.head.scheme == quanto.Scheme("int8", "int8", dynamic=False)  # type: ignore[union-attr]


# -- in place and on copies --------------------------------------------------------------------------------------------


def test_a_copy_leaves_the_model_alone() -> None:
    model = _model()
    expected = model(TOKENS)
    copied = quanto.freeze(quanto.quantized(model, "int4"))
    assert not _schemes(model)
    assert torch.equal(model(TOKENS), expected)
    assert isinstance(copied.head, QLinear)
    assert copied.head.bias is not model.head.bias


def test_quantizing_twice_changes_the_scheme_until_frozen() -> None:
    model = quanto.quantize(_model(), "int8", "int8")
    with quanto.Calibration(streamline=False):
        model(TOKENS)
    assert model.head.input_scale is not None
    quanto.quantize(model, "int4", "int8", include="head")
    assert model.head.input_scale is not None, "the activations are the same"
    quanto.quantize(model, "int4", "float8", group_size=16)
    assert set(_schemes(model).values()) == {"int4"}
    assert model.head.input_scale is None, "a scale of int8 is none of float8"
    once = quanto.freeze(quanto.quantize(_model(), "int4", "float8", group_size=16))
    assert torch.equal(quanto.freeze(model)(TOKENS), once(TOKENS))
    before = model(TOKENS)
    with pytest.warns(UserWarning, match=r"changed nothing: what is frozen stays \(.*int4"):
        quanto.quantize(model, "int8")
    assert set(_schemes(model).values()) == {"int4"}, "what is frozen stays"
    assert torch.equal(model(TOKENS), before)


def test_a_tied_weight_keeps_the_scheme_of_its_twin(caplog: pytest.LogCaptureFixture) -> None:
    model = _model()
    model.head = nn.Linear(32, 20, bias=False)
    model.head.weight = model.embed.weight
    quanto.quantize(model, "int8", include=["head", "embed"])
    with caplog.at_level("INFO", "quanto"):
        quanto.quantize(model, "int4", include="head")
    assert _schemes(model) == {"embed": "int8", "head": "int8"}
    assert "head stays as it is: its weight is tied to 'embed'" in caplog.text
    expected = model(TOKENS)
    quanto.freeze(model)
    assert model.head.weight_packed is model.embed.weight_packed
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=1e-5)
    quanto.dequantize(model)
    assert model.head.weight is model.embed.weight


# -- freezing ----------------------------------------------------------------------------------------------------------


def test_freezing_twice_changes_nothing() -> None:
    model = quanto.freeze(quanto.quantize(_model(), "int4"))
    before = {n: id(p) for n, p in model.named_parameters()}
    assert quanto.freeze(model) is model
    assert {n: id(p) for n, p in model.named_parameters()} == before


def test_a_float_weight_is_gone_before_the_next_is_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quanto.quantize(nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))), "int8")
    weights = [weakref.ref(layer.weight) for layer in model]
    alive: list[int] = []
    quantize = base.quantize_tensor

    def counting(*args: Any, **kwargs: Any) -> Any:
        alive.append(sum(w() is not None for w in weights))
        return quantize(*args, **kwargs)

    monkeypatch.setattr(base, "quantize_tensor", counting)
    quanto.freeze(model)
    assert alive == [3, 2, 1]
    assert not any(w() for w in weights)


def test_what_inference_mode_freezes_and_loads_can_be_trained_around(tmp_path: Path) -> None:
    model = quanto.quantize(nn.Sequential(nn.Linear(64, 8)), "int4")
    with torch.inference_mode():
        quanto.freeze(model)
        quanto.save(model, tmp_path)
        again = quanto.load(tmp_path, nn.Sequential(nn.Linear(64, 8)))
    for made in (model, again):
        made(torch.ones(1, 64)).sum().backward()
        assert torch.equal(made[0].bias.grad, torch.ones(8))
        assert not made[0].weight_packed.requires_grad


def test_there_must_be_something_to_freeze() -> None:
    with pytest.raises(ValueError, match=r"nothing to freeze: no module is quantized\. quanto\.quantize"):
        quanto.freeze(_model())


def test_a_model_may_be_frozen_in_steps() -> None:
    model = quanto.freeze(quanto.quantize(_model(), "int8", include="blocks.*"))
    quanto.freeze(quanto.quantize(model, "int4", include=["head", "embed"]))
    assert {m.frozen for m in model.modules() if isinstance(m, QModule)} == {True}
    assert _schemes(model) == {**dict.fromkeys(LINEARS[:4], "int8"), "head": "int4", "embed": "int4"}
    assert isinstance(model.embed, QEmbedding)
    want = quanto.freeze(quanto.quantize(_model(), "int8", rules={"head": "int4", "embed": "int4"}))
    assert torch.equal(model(TOKENS), want(TOKENS))


@pytest.mark.parametrize("weights", sorted(quanto.qtypes))
def test_dequantizing_gives_back_a_float_model_of_the_same_values(weights: str) -> None:
    model, plain = quanto.freeze(quanto.quantize(_model(), weights)), _model()
    frozen = model(TOKENS)
    values = {n: m.weight.dequantize() for n, m in model.named_modules() if isinstance(m, QModule)}
    assert quanto.dequantize(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(model.get_parameter(f"{n}.weight"), value) for n, value in values.items())
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(TOKENS), frozen, atol=1e-5, rtol=1e-5)
    again = quanto.freeze(quanto.quantize(model, weights))
    assert (again(TOKENS) - frozen).abs().max() < 0.3 * frozen.abs().max()


def test_dequantizing_trainable_layers_keeps_their_weights() -> None:
    model = quanto.quantize(_model(), "int8")
    weight = model.head.weight
    quanto.dequantize(model)
    assert model.head.weight is weight  # type: ignore[union-attr]


# -- mixed precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibrate", [False, True])
def test_unlike_activations_side_by_side(calibrate: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 8)]
    model: Any = nn.Sequential(*layers).eval()
    x = torch.randn(64, 32, generator=G)
    expected = model(x)
    float8, int8 = quanto.presets["w8a8-float8"], quanto.presets["w8a8"]
    quanto.quantize(model, rules=[("0", int8), ("1", float8), ("3", float8), ("4", "int4")])
    if calibrate:
        with quanto.Calibration():
            for batch in x.split(16):
                model(batch)
        assert [m.output_scale is not None for m in (model[0], model[1], model[3])] == [False, True, False]
    simulated = model(x)
    frozen = quanto.freeze(model)(x)
    assert (frozen - simulated).norm() < 0.02 * simulated.norm()
    assert 1e-3 < (frozen - expected).norm() / expected.norm() < 0.15
    with torch.no_grad():
        y = x
        for layer in copy.deepcopy(model):
            y = layer(y.dequantize() if isinstance(y, quanto.QTensor) else y)
    torch.testing.assert_close(model(x), y, atol=1e-4, rtol=1e-4)
