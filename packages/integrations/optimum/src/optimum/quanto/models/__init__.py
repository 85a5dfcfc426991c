# SPDX-License-Identifier: Apache-2.0
"""Whole models of transformers and diffusers; the libraries are imported when a class is first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diffusers_models import QuantizedDiffusersModel, QuantizedPixArtTransformer2DModel
    from .transformers_models import QuantizedModelForCausalLM, QuantizedTransformersModel

__all__ = [
    "QuantizedDiffusersModel",
    "QuantizedModelForCausalLM",
    "QuantizedPixArtTransformer2DModel",
    "QuantizedTransformersModel",
]

#: the library, and so the module here, that each class needs
LAZY = {
    "QuantizedDiffusersModel": "diffusers",
    "QuantizedPixArtTransformer2DModel": "diffusers",
    "QuantizedModelForCausalLM": "transformers",
    "QuantizedTransformersModel": "transformers",
}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{LAZY[name]}_models", __name__), name)
    return value
