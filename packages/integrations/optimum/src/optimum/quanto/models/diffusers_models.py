# SPDX-License-Identifier: Apache-2.0
"""Quantized models of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from diffusers import ModelMixin, PixArtTransformer2DModel

from .wrapper import QuantizedModel

__all__ = ["QuantizedDiffusersModel", "QuantizedPixArtTransformer2DModel"]


class QuantizedDiffusersModel(QuantizedModel):
    """A quantized model of diffusers; a subclass with a `base_class` can be read from a folder too."""

    library = "diffusers"
    stem = "diffusion_pytorch_model"
    base_class: ClassVar[Any] = None

    @classmethod
    def _check(cls, model: object) -> None:
        if not isinstance(model, ModelMixin):
            raise ValueError(f"model must be a diffusers model, got {type(model).__name__}")

    @classmethod
    def _empty(cls, folder: Path, **kwargs: Any) -> Any:
        path = folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder} has no config.json")
        written = json.loads(path.read_text(encoding="utf-8")).get("_class_name")
        if written != cls.base_class.__name__:
            raise ValueError(f"{path} is of a {written}, {cls.__name__} reads a {cls.base_class.__name__}")
        return cls.base_class.from_config(cls.base_class.load_config(folder, **kwargs))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """See `QuantizedModel.from_pretrained`."""
        if cls.base_class is None:
            raise ValueError(f"{cls.__name__} has no base_class: use a subclass with the class of the model")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)


class QuantizedPixArtTransformer2DModel(QuantizedDiffusersModel):
    """A quantized transformer of PixArt."""

    base_class = PixArtTransformer2DModel
