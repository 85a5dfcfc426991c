# SPDX-License-Identifier: Apache-2.0
"""`QuantoConfig`: what `from_pretrained(quantization_config=…)` takes, and what a saved model's `config.json` holds."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.quantization_config import QuantizationMethod
from transformers.utils.quantization_config import QuantoConfig as StockQuantoConfig

from quanto import Scheme

from .kv_config import KVCacheConfig
from .layers import FORMAT_VERSION, parse_layers
from .rules import parse_rules

__all__ = ["QuantoConfig"]

#: fields that are fields of `quanto.Scheme` too.
_SCHEME = (
    "weights",
    "activations",
    "group_size",
    "granularity",
    "block",
    "symmetric",
    "algorithm",
    "scale_dtype",
    "dynamic",
)
_FLAGS = ("keep_default_skips", "lm_head", "embeddings", "experts", "qat", "dequantize")


class QuantoConfig(StockQuantoConfig):  # type: ignore[misc]
    """How a model is quantized. A superset of `transformers.QuantoConfig`, which works too.

    Args:
        weights: qtype of the weights: `"int8"`, `"int4"`, `"float8"`, `"nf4"` or any other of `quanto.qtypes`; None
            where rules say it all.
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
        _refuse_unknown(unknown)
        if getattr(quant_method, "value", quant_method) != "quanto":
            raise ValueError(f"quant_method must be 'quanto', got {quant_method!r}")
        if type(format_version) is not int or format_version < 1:
            raise ValueError(f"format_version must be a positive integer, got {format_version!r}")
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"the model was saved in format version {format_version}; this quanto-transformers reads up to "
                f"{FORMAT_VERSION}: upgrade it"
            )
        self.quant_method = QuantizationMethod.QUANTO
        self.weights, self.activations = weights, activations
        self.group_size, self.granularity, self.symmetric = group_size, granularity, symmetric
        self.block = None if block is None else list(block)
        self.algorithm, self.scale_dtype, self.dynamic = algorithm, scale_dtype, dynamic
        self.rules = [rule.to_dict() for rule in parse_rules(rules)]
        self.modules_to_not_convert = _names(modules_to_not_convert)
        for name, value in zip(
            _FLAGS, (keep_default_skips, lm_head, embeddings, experts, qat, dequantize), strict=True
        ):
            if type(value) is not bool:
                raise ValueError(f"{name} must be True or False, got {value!r}")
            setattr(self, name, value)
        self.kv_cache = None if kv_cache is None else KVCacheConfig.parse(kv_cache).to_dict()
        self.format_version = format_version
        self.modules = None if modules is None else [layer.to_dict() for layer in parse_layers(modules)]
        self.optimum_map = optimum_map
        self.post_init()

    def post_init(self) -> None:
        """Checks the scheme, and gives its names their plain form."""
        if self.weights is None:
            given = [f for f in _SCHEME if getattr(self, f) is not None]
            if given or not (self.rules or self.modules):
                raise ValueError(f"weights=None needs rules, and nothing else about schemes; got {given or 'no rules'}")
            return
        scheme = self.scheme
        assert scheme is not None
        self.weights, self.activations, self.scale_dtype = scheme.weights, scheme.activations, scheme.scale_dtype

    @property
    def scheme(self) -> Scheme | None:
        """What modules get that no rule names; None for nothing."""
        if self.weights is None:
            return None
        return Scheme(**{f: getattr(self, f) for f in _SCHEME})

    @classmethod
    def of(cls, config: Any) -> QuantoConfig:
        """A copy, or a config of this class from the stock one, whose other fields have their defaults."""
        if isinstance(config, cls):
            return copy.deepcopy(config)
        return cls(config.weights, config.activations, config.modules_to_not_convert)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: fields that are not at their default.

        qtypes are written as `"qint8"`: the stock class, where quanto-transformers is not installed and optimum-quanto
        is, then refuses the file instead of loading a model of random weights.
        """
        out: dict[str, Any] = {"quant_method": "quanto", "format_version": self.format_version}
        for name in (*_SCHEME, "modules_to_not_convert", *_FLAGS, "rules", "kv_cache", "modules"):
            value = getattr(self, name)
            if value is not None and value != [] and value != _DEFAULTS.get(name):
                out[name] = f"q{value}" if name in ("weights", "activations") else copy.deepcopy(value)
        out.setdefault("weights", self.weights)
        return out

    def get_loading_attributes(self) -> dict[str, Any]:
        """What a config passed to `from_pretrained` changes of that of a saved model."""
        out: dict[str, Any] = {"dequantize": True} if self.dequantize else {}
        return out if self.kv_cache is None else {**out, "kv_cache": self.kv_cache}


_DEFAULTS = {"keep_default_skips": True, "experts": True, **dict.fromkeys(("lm_head", "embeddings", "qat"), False)}
_DEFAULTS["dequantize"] = False


def _refuse_unknown(unknown: Mapping[str, Any]) -> None:
    for name in unknown:
        known = sorted({*_SCHEME, *_FLAGS, "modules_to_not_convert", "rules", "kv_cache"})
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"QuantoConfig has no field {name!r}; {hint}")


def _names(value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"modules_to_not_convert must be a list of strings, got {value!r}")
    return list(value)
