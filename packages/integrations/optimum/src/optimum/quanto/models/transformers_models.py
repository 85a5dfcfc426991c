# SPDX-License-Identifier: Apache-2.0
"""Quantized models of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..nn import QModuleMixin
from .wrapper import QuantizedModel

__all__ = ["QuantizedModelForCausalLM", "QuantizedTransformersModel"]


class QuantizedTransformersModel(QuantizedModel):
    """A quantized model of transformers; a subclass with an `auto_class` can be read from a folder too."""

    library = "transformers"
    stem = "model"
    auto_class: ClassVar[Any] = None

    @classmethod
    def _check(cls, model: object) -> None:
        if not isinstance(model, PreTrainedModel):
            raise ValueError(f"model must be a transformers model, got {type(model).__name__}")

    @classmethod
    def _empty(cls, folder: Path, **kwargs: Any) -> Any:
        config = AutoConfig.from_pretrained(folder, **kwargs)
        return cls.auto_class.from_config(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """See `QuantizedModel.from_pretrained`."""
        if cls.auto_class is None:
            raise ValueError(f"{cls.__name__} has no auto_class: use QuantizedModelForCausalLM or a subclass of yours")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @contextmanager
    def _config_for_saving(self) -> Iterator[None]:
        """Says in the file that a quantized head and its embedding are two weights."""
        model = self._wrapped
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        tied = getattr(model.config, "tie_word_embeddings", None)
        if not tied or not any(isinstance(end, QModuleMixin) for end in ends):
            yield
            return
        model.config.tie_word_embeddings = False
        try:
            yield
        finally:
            model.config.tie_word_embeddings = tied


class QuantizedModelForCausalLM(QuantizedTransformersModel):
    """A quantized language model."""

    auto_class = AutoModelForCausalLM
