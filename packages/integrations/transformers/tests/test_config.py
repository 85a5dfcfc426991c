# SPDX-License-Identifier: Apache-2.0
"""What a `QuantoConfig` takes, refuses, and writes."""

from __future__ import annotations

import json
import re

import pytest
import torch
import transformers

from quanto import Rule, Scheme
from quanto_transformers import QuantoConfig

FULL = {
    "weights": "int4",
    "activations": "int8",
    "modules_to_not_convert": ["layers.0"],
    "group_size": 32,
    "algorithm": "absmax",
    "scale_dtype": "float16",
    "dynamic": True,
    "rules": {"*.down_proj": "int8", "re:.*gate": None},
    "keep_default_skips": False,
    "lm_head": True,
    "embeddings": True,
    "experts": False,
    "kv_cache": {"nbits": 2, "q_group_size": 32},
}


@pytest.mark.parametrize("given", [{}, {"weights": "float8"}, FULL, {"weights": "nf4"}, {"block": [16, 16]}])
def test_survives_json(given: dict) -> None:
    config = QuantoConfig(**given)
    text = json.dumps(config.to_dict())
    again = QuantoConfig.from_dict(json.loads(text))
    assert again.__dict__ == config.__dict__
    assert again.to_dict() == config.to_dict()


def test_is_the_stock_class_and_takes_its_place() -> None:
    config = QuantoConfig()
    assert isinstance(config, transformers.QuantoConfig)
    stock = transformers.QuantoConfig(weights="int2", modules_to_not_convert=["lm_head"])
    made = QuantoConfig.of(stock)
    assert made.scheme == Scheme("int2")
    assert made.modules_to_not_convert == ["lm_head"]
    assert QuantoConfig.of(config) is not config


@pytest.mark.parametrize("given", [{}, FULL, {"activations": "float8"}])
def test_the_stock_class_refuses_its_files(given: dict) -> None:
    """Where only optimum-quanto is installed, a file of ours must not load as a model of random weights."""
    with pytest.raises(ValueError, match="Only support weights in"):
        transformers.QuantoConfig.from_dict(QuantoConfig(**given).to_dict())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weigths": "int8"}, "no field 'weigths'; did you mean 'weights'"),
        ({"overrides": {}}, "no field 'overrides'; known: activations, algorithm"),
        ({"weights": "int5"}, "unknown qtype 'int5'"),
        ({"activations": "int4"}, "activations must be int8 or float8"),
        ({"weights": "mxfp4", "group_size": 64}, "mxfp4 fixes groups of 32"),
        ({"group_size": 0}, "group_size must be a positive integer"),
        ({"weights": None}, "weights=None needs rules"),
        ({"lm_head": "yes"}, "lm_head must be True or False"),
        ({"modules_to_not_convert": "lm_head"}, "must be a list of strings"),
        ({"rules": {"*": "int99"}}, r"the rule for '\*': unknown qtype"),
        ({"rules": {"re:(": "int8"}}, r"the rule for 're:\('"),
        ({"rules": [lambda name, module: True, "int8"]}, "a rule is a pair"),
        ({"rules": [(lambda name, module: True, "int8")]}, "pattern must be text"),
        ({"rules": [{"pattern": "*", "scheme": "int8", "when": 1}]}, "no field 'when'"),
        ({"kv_cache": {"nbits": 5}}, "nbits must be one of 8, 4, 3, 2"),
        ({"kv_cache": {"weights": "mxfp4"}}, "fixes its blocks"),
        ({"kv_cache": {"size": 5}}, "no field 'size'"),
        ({"format_version": 2}, "format version 2; this quanto-transformers reads up to 1"),
        ({"format_version": "1"}, "must be a positive integer"),
        ({"quant_method": "bitsandbytes"}, "quant_method must be 'quanto'"),
        ({"modules": {}}, "modules must be a list"),
        ({"modules": [{"names": ["a"], "scheme": {"weights": "int8"}}]}, r"modules\[0\]: dtype must be one of"),
        ({"modules": [{"names": "a", "scheme": {"weights": "int8"}, "dtype": "float32"}]}, "names must be a list"),
        ({"modules": [{"names": [], "scheme": {"bits": 8}, "dtype": "float32"}]}, "unknown scheme fields bits"),
        ({"modules": [{"names": [], "extra": 1}]}, "unknown fields 'extra'"),
        ({"modules": 2 * [{"names": ["a"], "scheme": {"weights": "int8"}, "dtype": "float32"}]}, "names 'a' twice"),
    ],
)
def test_refuses(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantoConfig(**given)


def test_rules_in_all_their_forms() -> None:
    forms = [
        {"a.*": "int8", "re:b": None},
        [("a.*", "int8"), ("re:b", None)],
        [Rule("a.*", Scheme("int8")), Rule(re.compile("b"), None)],
        [{"pattern": "a.*", "scheme": {"weights": "int8"}}, {"pattern": "re:b", "scheme": None}],
    ]
    assert all(QuantoConfig(rules=form).rules == QuantoConfig(rules=forms[0]).rules for form in forms)


def test_weights_have_diffusers_name_too() -> None:
    assert QuantoConfig(weights_dtype="int4").weights == "int4"


def test_dtypes_may_be_torch_s() -> None:
    assert QuantoConfig(scale_dtype=torch.bfloat16).to_dict()["scale_dtype"] == "bfloat16"


def test_what_may_change_at_loading() -> None:
    assert QuantoConfig().get_loading_attributes() == {}
    found = QuantoConfig(dequantize=True, kv_cache={"nbits": 8}).get_loading_attributes()
    assert found["dequantize"] is True
    assert found["kv_cache"]["weights"] == "int8"
