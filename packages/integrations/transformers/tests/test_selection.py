# SPDX-License-Identifier: Apache-2.0
"""Which modules a config quantizes, and how."""

from __future__ import annotations

import logging

import pytest
from tiny import build

from quanto_transformers import QuantoConfig
from quanto_transformers.selection import default_skips, select


def _names(model: str, **config: object) -> set[str]:
    return {choice.name for choice in select(build(model), QuantoConfig(**config))}


def test_all_linears_but_the_head() -> None:
    names = _names("llama")
    assert len(names) == 14
    assert not any("lm_head" in n or "embed" in n or "norm" in n for n in names)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("llama", {"lm_head"}),
        ("llama-tied", {"lm_head", "model.embed_tokens"}),
        ("vit", {"classifier"}),
        ("bert", {"pooler.dense"}),
        ("whisper", {"proj_out", "model.decoder.embed_tokens"}),
    ],
)
def test_default_skips(name: str, kept: set[str]) -> None:
    assert default_skips(build(name)) == kept


def test_what_the_user_leaves_out_adds_to_the_defaults() -> None:
    names = _names("llama", modules_to_not_convert=["layers.0", "*.mlp.*"])
    assert names == {f"model.layers.1.self_attn.{p}_proj" for p in "qkvo"}
    assert "lm_head" in _names("llama", keep_default_skips=False)
    assert "lm_head" not in _names("llama", keep_default_skips=False, modules_to_not_convert=["lm_head"])


def test_a_skip_that_matches_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "quanto_transformers"):
        _names("llama", modules_to_not_convert=["lm_haed"])
    assert "'lm_haed' matches no module" in caplog.text


def test_rules_decide_before_defaults_and_after_skips() -> None:
    rules = {"lm_head": "int8", "*.layers.1.*": None, "*.down_proj": {"weights": "int2", "group_size": 32}}
    model = build("llama")
    config = QuantoConfig("int4", rules=rules, modules_to_not_convert=["layers.0.self_attn"])
    found = {c.name: c.scheme for c in select(model, config)}
    assert found["lm_head"].weights == "int8"
    assert found["model.layers.0.mlp.down_proj"].weights == "int2"
    assert found["model.layers.0.mlp.up_proj"].weights == "int4"
    assert set(found) == {"lm_head", *(f"model.layers.0.mlp.{p}_proj" for p in ("gate", "up", "down"))}
    only = QuantoConfig(None, rules={"*.down_proj": "int8"})
    assert {c.name for c in select(model, only)} == {f"model.layers.{i}.mlp.down_proj" for i in (0, 1)}


def test_a_rule_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the rule '\*.downproj' matches no module; names look like"):
        _names("llama", rules={"*.downproj": "int8"})


def test_heads_and_embeddings_on_request() -> None:
    assert _names("llama", lm_head=True) - _names("llama") == {"lm_head"}
    assert _names("llama", embeddings=True) - _names("llama") == {"model.embed_tokens"}
    tied = _names("llama-tied", lm_head=True, embeddings=True) - _names("llama-tied")
    assert tied == {"lm_head", "model.embed_tokens"}
    with pytest.raises(ValueError, match="are one tied weight: quantize both alike"):
        _names("llama-tied", lm_head=True)
    with pytest.raises(ValueError, match="are one tied weight"):
        _names("llama-tied", rules={"lm_head": "int8", "model.embed_tokens": "int4"})


@pytest.mark.parametrize(
    ("name", "arrangement"),
    [("mixtral", "rows"), ("qwen3-moe", "rows"), ("gpt-oss", "transposed"), ("llama4", "transposed")],
)
def test_experts(name: str, arrangement: str) -> None:
    chosen = [c for c in select(build(name), QuantoConfig()) if c.name.endswith("experts")]
    assert len(chosen) == 2
    assert all(c.parameters == {"gate_up_proj": arrangement, "down_proj": arrangement} for c in chosen)
    assert not any("router" in c.name or c.name.endswith("mlp.gate") for c in select(build(name), QuantoConfig()))
    assert not any(n.endswith("experts") for n in _names(name, experts=False))


def test_raw_parameters_by_a_rule() -> None:
    rules = [{"pattern": "*.mlp.gate", "scheme": "int8", "parameters": ["weight"]}]
    chosen = next(c for c in select(build("mixtral"), QuantoConfig(rules=rules)) if c.name.endswith("mlp.gate"))
    assert chosen.parameters == {"weight": "rows"}
    rules[0]["parameters"] = ["wait"]
    with pytest.raises(ValueError, match="has no parameter 'wait'"):
        select(build("mixtral"), QuantoConfig(rules=rules))


def test_norms_only_with_activations() -> None:
    assert not any("norm" in n for n in _names("opt"))
    assert any("norm" in n for n in _names("opt", activations="int8"))
    assert not any("norm" in n for n in _names("opt", activations="int8", dynamic=True))
