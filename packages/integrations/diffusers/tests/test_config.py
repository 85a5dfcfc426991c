# SPDX-License-Identifier: Apache-2.0
"""What a config takes, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from quanto_diffusers import QuantoConfig


def test_names_of_the_stock_class() -> None:
    config = QuantoConfig(weights_dtype="int4", modules_to_not_convert=["a"])
    assert (config.weights, config.weights_dtype, config.modules_to_not_convert) == ("int4", "int4", ["a"])
    assert QuantoConfig("int8", ["a"]).modules_to_not_convert == ["a"]
    assert config.quant_method.value == "quanto"


def test_diffusers_gives_ours() -> None:
    from diffusers import QuantoConfig as Found

    assert Found is QuantoConfig


def test_reads_what_it_writes() -> None:
    config = QuantoConfig(None, rules={"a.*": "int4", "*": "int8"}, keep_default_skips=False)
    for made in (QuantoConfig.from_dict(config.to_dict()), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert made.to_dict() == config.to_dict()
    assert "int4" in repr(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "int9"}, "int9"),
        ({"weight": "int8"}, "did you mean 'weights'"),
        ({"quant_method": "gguf"}, "quant_method must be 'quanto'"),
        ({"rules": "a"}, "rules must be a mapping"),
        ({"weights": "int4", "weights_dtype": "int8"}, "weights_dtype is another name of weights"),
        ({"kv_cache": 3}, "kv_cache must be a mapping"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantoConfig(**fields)


def test_a_config_of_another_library_is_refused() -> None:
    from diffusers import GGUFQuantizationConfig
    from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    with pytest.raises(ValueError, match=r"GGUFQuantizationConfig is no config of quanto"):
        AUTO_QUANTIZER_MAPPING["quanto"](GGUFQuantizationConfig())
