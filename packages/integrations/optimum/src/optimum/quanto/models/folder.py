# SPDX-License-Identifier: Apache-2.0
"""A folder of a quantized model: its quantization map, and its weights in one file or several."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..qtype import qtypes

__all__ = ["MAP", "Shards", "read_map", "read_weights", "write_map"]

MAP = "quanto_qmap.json"


def write_map(folder: Path, quantization_map: Mapping[str, Any]) -> None:
    """Writes the map beside the weights."""
    (folder / MAP).write_text(json.dumps(quantization_map, indent=4), encoding="utf-8")


def read_map(folder: Path) -> dict[str, dict[str, str]]:
    """Reads and checks the map of a folder.

    Raises:
        ValueError: naming the file and what is wrong: it is missing, damaged, of another library or a newer version.
    """
    path = folder / MAP
    if not path.is_file():
        raise ValueError(f"{folder} has no {MAP}{_whose(folder)}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object of modules, got {type(found).__name__}")
    for name, entry in found.items():
        if problem := _problem(entry):
            raise ValueError(f"{path}: module {name!r} {problem}")
    return found


def _problem(entry: Any) -> str | None:
    if not isinstance(entry, dict) or not {"weights", "activations"} <= entry.keys():
        return "must have weights and activations"
    if unknown := sorted(entry.keys() - {"weights", "activations", "outputs"}):
        return f"has the field {unknown[0]!r}, unknown to this version: a newer version wrote it"
    for field, value in entry.items():
        if value not in (*qtypes, "none") or (field == "outputs" and value != "none"):
            return f"has {field} {value!r}, unknown to this version: a newer version or another library wrote it"
    return None


def _whose(folder: Path) -> str:
    """Whose folder it is instead, as the end of a sentence."""
    if (folder / "quanto.json").is_file():
        return ": quanto itself wrote it, read it with quanto.load(model, folder)"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        method = config["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError):
        return ": it holds no model that was quantized by optimum.quanto"
    if method == "quanto":
        return (
            ": it was saved through QuantoConfig; load it with the library that wrote it, for example "
            "AutoModelForCausalLM.from_pretrained with quanto-transformers installed"
        )
    return f": its model was quantized with {method!r}, which optimum.quanto does not read"


def read_weights(folder: Path, stem: str) -> Shards:
    """The tensors of `<stem>.safetensors`, or of the shards that `<stem>.safetensors.index.json` names.

    Raises:
        ValueError: if there are none, or a shard is missing.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        try:
            files = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index} is no index of shards: {error!r}") from error
        for name in sorted(set(files.values())):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} lacks {name}, which {index.name} names")
        return Shards(folder, files)
    single = folder / f"{stem}.safetensors"
    if not single.is_file():
        raise ValueError(f"{folder} has neither {single.name} nor {index.name}")
    with safe_open(single, framework="pt") as opened:
        return Shards(folder, dict.fromkeys(opened.keys(), single.name))


class Shards(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for.

    Args:
        folder: where the files lie.
        files: the file of each tensor.
    """

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self._folder, self._files = folder, files
        self._opened: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        if file not in self._opened:
            self._opened[file] = safe_open(self._folder / file, framework="pt")
        tensor: Tensor = self._opened[file].get_tensor(name)
        return tensor
