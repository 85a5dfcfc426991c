# SPDX-License-Identifier: Apache-2.0
"""`Source`: a float checkpoint in safetensors files, read tensor by tensor."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .errors import FormatError
from .header import TensorInfo, read_header

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """A folder of safetensors files, or one file.

    Attributes:
        folder: where what lies beside the tensors is.
        infos: dtype and shape of each tensor, in the order of files and names.
        files: where each is.
        lone: whether it is a file, and what lies beside it is not known to belong to it.
    """

    folder: Path
    infos: dict[str, TensorInfo]
    files: dict[str, Path]
    lone: bool = False

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Source:
        """Reads the headers; no tensor.

        Raises:
            FormatError: if there are no safetensors, one is damaged, or two hold the same tensor.
        """
        path = Path(path)
        if not path.exists():
            raise FormatError(f"{path} does not exist; a model is a folder of safetensors files, or one such file")
        infos: dict[str, TensorInfo] = {}
        files: dict[str, Path] = {}
        for file in _files(path):
            for name, info in read_header(file, file.stat().st_size).items():
                if name in files:
                    raise FormatError(f"{file}: tensor {name!r} is in {files[name].name} too")
                infos[name], files[name] = info, file
        return cls(path if path.is_dir() else path.parent, infos, files, path.is_file())

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from its file.

        Raises:
            FormatError: if the file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.files[name], framework="pt", device="cpu") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{self.files[name]} cannot be read: {error}") from None
        return tensor


def _files(path: Path) -> list[Path]:
    """Those that the index names, where there is one: a folder may hold the same model twice."""
    if path.is_file():
        return [path]
    indices = sorted(path.glob("*.safetensors.index.json"))
    if indices:
        try:
            named = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values()
            found = [path / name for name in sorted(set(named)) if Path(name).name == name]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise FormatError(f"{indices[0]} is no index of safetensors files") from None
        missing = next((file for file in found if not file.is_file()), None)
        if missing is not None:
            raise FormatError(f"{missing} is missing; {indices[0].name} names it")
    else:
        found = sorted(path.glob("*.safetensors"))
    if not found:
        raise FormatError(f"{path} holds no safetensors files")
    return found
