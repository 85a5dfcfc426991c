# SPDX-License-Identifier: Apache-2.0
"""`QuantoConfig`: what `from_pretrained(quantization_config=…)` takes, and what a saved model's `config.json` holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.quantization_config import QuantizationMethod
from transformers.utils.quantization_config import QuantoConfig as StockQuantoConfig

from quanto.hosts.config import FLAGS, SCHEME, ConfigFields, refuse_unknown, weights_of
from quanto.hosts.layers import FORMAT_VERSION

from .kv_config import KVCacheConfig

__all__ = ["QuantoConfig"]

_KNOWN = (*SCHEME, *FLAGS, "modules_to_not_convert", "rules", "kv_cache", "weights_dtype")


class QuantoConfig(ConfigFields, StockQuantoConfig):  # type: ignore[misc]
    """How a model is quantized. A superset of `transformers.QuantoConfig`, which works too.

    Args:
        weights: qtype of the weights: `"int8"`, `"int4"`, `"float8"`, `"nf4"` or any other of `quanto.qtypes`; None
            where rules say it all. `weights_dtype`, as diffusers calls it, does too.
        activations: qtype of the layers' inputs, `"int8"` or `"float8"`; a scale per token at run time, until
            `quanto_transformers.calibrate` gives static ones. None leaves them floating.
        modules_to_not_convert: modules to leave floating, beside those left by default: each a path (`"lm_head"`,
            `"layers.0"`: itself or any whole part of a path, with what is below it), a glob on the whole path
            (`"*.layers.[01].*"`) or a regular expression for the whole path (`"re:.*gate"`).
        group_size, granularity, block, symmetric, algorithm, scale_dtype, dynamic: see `quanto.Scheme`.
        rules: mixed precision: a mapping, or a sequence of pairs or `quanto.Rule`, of a glob (or `"re:…"`) on the path
            and a scheme (`"int8"`, a mapping, a `quanto.Scheme`), None to leave floating; the first that matches
            decides.
        keep_default_skips: whether to leave output heads, tied weights and what the model wants in float32 floating,
            unless a rule names them. False: only `modules_to_not_convert` is left.
        lm_head: whether to quantize the output embeddings too.
        embeddings: whether to quantize the input embeddings too. Where both are tied, ask for both.
        experts: whether to quantize the 3-D parameters of mixture-of-experts layers.
        qat: quantization-aware training: weights stay trainable floats, rounded on the fly, until
            `quanto_transformers.freeze(model)`.
        kv_cache: a quantized key and value cache for `generate`, as `{"weights": "int4", …}`; see
            `quanto_transformers.kv_config.KVCacheConfig`.
        dequantize: for saved models: load them as floats.
        format_version, modules: of a saved model; not to be given by hand.
        optimum_map: the path of the map in a folder that optimum-quanto saved; not to be given by hand.

    Raises:
        ValueError: for an unknown or unfit field, naming it.
    """

    def __init__(
        self,
        weights: str | None = "int8",
        activations: str | None = None,
        modules_to_not_convert: Sequence[str] | None = None,
        *,
        group_size: int | None = None,
        granularity: str | None = None,
        block: Sequence[int] | None = None,
        symmetric: bool | None = None,
        algorithm: str | None = None,
        scale_dtype: str | None = None,
        dynamic: bool | None = None,
        rules: Mapping[str, Any] | Sequence[Any] | None = None,
        keep_default_skips: bool = True,
        lm_head: bool = False,
        embeddings: bool = False,
        experts: bool = True,
        qat: bool = False,
        kv_cache: Mapping[str, Any] | None = None,
        dequantize: bool = False,
        format_version: int = FORMAT_VERSION,
        modules: Sequence[Mapping[str, Any]] | None = None,
        optimum_map: str | None = None,
        quant_method: str = "quanto",
        **unknown: Any,
    ) -> None:
        weights = weights_of(weights, unknown)
        refuse_unknown(unknown, _KNOWN)
        if getattr(quant_method, "value", quant_method) != "quanto":
            raise ValueError(f"quant_method must be 'quanto', got {quant_method!r}")
        self.quant_method = QuantizationMethod.QUANTO
        given = locals()
        names = (*SCHEME, *FLAGS, "modules_to_not_convert", "rules", "modules", "format_version")
        self.set_fields({name: given[name] for name in names}, "quanto-transformers")
        self.kv_cache = None if kv_cache is None else KVCacheConfig.parse(kv_cache).to_dict()
        self.optimum_map = optimum_map

    def post_init(self) -> None:
        """See `ConfigFields.check_scheme`; the stock class calls it by this name."""
        self.check_scheme()

    @classmethod
    def of(cls, config: Any) -> QuantoConfig:
        """A copy, or a config of this class from the stock one, whose other fields have their defaults."""
        if isinstance(config, cls):
            return copy.deepcopy(config)
        return cls(config.weights, config.activations, config.modules_to_not_convert)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: fields that are not at their default; see `ConfigFields.fields`."""
        out = self.fields()
        return out if self.kv_cache is None else {**out, "kv_cache": copy.deepcopy(self.kv_cache)}

    def get_loading_attributes(self) -> dict[str, Any]:
        """What a config passed to `from_pretrained` changes of that of a saved model."""
        out: dict[str, Any] = {"dequantize": True} if self.dequantize else {}
        return out if self.kv_cache is None else {**out, "kv_cache": self.kv_cache}
