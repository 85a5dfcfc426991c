# SPDX-License-Identifier: Apache-2.0
"""`QuantizedModel`: a quantized model of a library, with `save_pretrained` and `from_pretrained`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import ModelHubMixin, snapshot_download
from torch import nn

from ..model import Patterns, freeze, quantization_map, quantize, requantize
from ..qtype import qtype
from ..tensor.optimizers import Optimizer
from .folder import read_map, read_weights, write_map

__all__ = ["QuantizedModel"]

_DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class QuantizedModel(ModelHubMixin):
    """Holds a quantized model; what it does not have itself is the model's. It is no `nn.Module`.

    Args:
        model: of the library, with at least one quantized module.
    """

    #: the library, and how it calls the file of weights
    library: ClassVar[str] = ""
    stem: ClassVar[str] = ""

    _wrapped: Any

    def __init__(self, model: nn.Module) -> None:
        self._check(model)
        if not quantization_map(model):
            raise ValueError(f"model must be quantized: no module of this {type(model).__name__} is")
        self._wrapped = model

    @classmethod
    def _check(cls, model: object) -> None:
        """Raises ValueError for what is no model of the library."""
        raise NotImplementedError(f"{cls.__name__} must implement _check")

    @classmethod
    def _empty(cls, folder: Path, **kwargs: Any) -> Any:
        """The float model that a folder describes; called where parameters get no memory."""
        raise NotImplementedError(f"{cls.__name__} must implement _empty")

    def __getattr__(self, name: str) -> Any:
        if name == "_wrapped":  # asked for before it is there, as copying does
            raise AttributeError(name)
        return getattr(self._wrapped, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The same as calling it."""
        return self._wrapped(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._wrapped)

    @classmethod
    def quantize(
        cls,
        model: nn.Module,
        weights: str | qtype | None = None,
        activations: str | qtype | None = None,
        optimizer: Optimizer | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> Any:
        """Quantizes and freezes a model in place, and wraps it; see `optimum.quanto.quantize`."""
        cls._check(model)
        quantize(model, weights, activations, optimizer=optimizer, include=include, exclude=exclude)
        freeze(model)
        return cls(model)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, max_shard_size: int | str | None = None, **kwargs: Any
    ) -> Any:
        """Writes config, weights and `quanto_qmap.json`, as optimum-quanto reads them.

        Args:
            save_directory: made if need be.
            max_shard_size: of a file of weights; None leaves it to the library.
            **kwargs: of `huggingface_hub.ModelHubMixin.save_pretrained`, `push_to_hub` for example.
        """
        self._shard_size = max_shard_size
        try:
            return super().save_pretrained(Path(save_directory), **kwargs)
        finally:
            del self._shard_size

    def _save_pretrained(self, save_directory: Path) -> None:
        size = getattr(self, "_shard_size", None)
        with self._config_for_saving():
            self._wrapped.save_pretrained(save_directory, **({} if size is None else {"max_shard_size": size}))
        write_map(Path(save_directory), quantization_map(self._wrapped))

    @contextmanager
    def _config_for_saving(self) -> Iterator[None]:
        yield

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Reads what `save_pretrained` wrote, here or in optimum-quanto.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the hub.
            **kwargs: of downloading, and of the library's config.

        Raises:
            ValueError: if the folder holds something else; the message names the file and what it is.
        """
        if find_spec("accelerate") is None:
            raise ImportError(f"{cls.__name__}.from_pretrained needs accelerate: pip install accelerate")
        from accelerate import init_empty_weights

        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            options = {name: kwargs[name] for name in _DOWNLOAD if name in kwargs}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), **options))
        quantized = read_map(folder)
        state = read_weights(folder, cls.stem)
        with init_empty_weights():
            model = cls._empty(folder, **kwargs)
        requantize(model, state, quantized)
        model.eval()
        return cls(model)
