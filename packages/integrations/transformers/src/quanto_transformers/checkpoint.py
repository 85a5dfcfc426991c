# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers, for core's command line and `quanto.load`: a format of the `register_formats` hook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Checkpoint"]


#: files of a model on the hub, without its weights in other formats
_FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")


class Checkpoint:
    """A folder with a `config.json` that transformers understands."""

    def accepts(self, folder: Path) -> bool:
        """Whether the folder is a float model, or a quantized one, of transformers."""
        return isinstance(_config(folder).get("model_type"), str)

    def detect(self, folder: Path) -> bool:
        """Whether the folder is one that `save_pretrained` wrote of a quantized model."""
        config = _config(folder).get("quantization_config")
        return isinstance(config, dict) and config.get("quant_method") == "quanto" and "modules" in config

    def load(self, folder: Path, model: nn.Module) -> nn.Module:
        """Gives a float model the quantized state of the folder."""
        import quanto
        from quanto.hosts.layers import by_name, parse_layers
        from quanto.serialization.sources import Source

        source = Source.open(folder)
        layers = parse_layers(_config(folder)["quantization_config"]["modules"])
        entries = {name: {"scheme": group.scheme.to_dict()} for name, group in by_name(layers)}
        state = {name: source.read(name) for name in source.infos}
        for name, value in model.state_dict().items():  # tied floats are stored once
            twin = next(
                (n for n, p in model.named_parameters() if p is value or p.data_ptr() == value.data_ptr()), name
            )
            if name not in state and twin in state and not value.is_meta:
                state[name] = state[twin]
        return quanto.requantize(model, state, entries)

    def layers(self, folder: Path) -> dict[str, str] | None:
        """What `from_pretrained` quantizes by default, by name; None where the names in files are not the model's."""
        from quanto.nn import modules
        from quanto.serialization.sources import Source

        from .config import QuantoConfig
        from .selection import select

        try:
            model = _skeleton(folder)
        except ValueError:  # an architecture that this transformers does not know
            return None
        stored = Source.open(folder).infos
        found = {}
        for choice in select(model, QuantoConfig("int8", experts=False)):
            twin, _ = modules.find(choice.module)
            if twin is None or f"{choice.name}.weight" not in stored:
                return None
            found[choice.name] = twin.quantized.quantized_parameters["weight"]
        return found

    def fetch(self, name: str) -> Path:
        """The folder in the hub's cache of a model's safetensors, configuration and tokenizer, downloaded if need be.

        Raises:
            ValueError: if there is no such model, or the hub can't be reached.
        """
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=list(_FETCHED)))
        except (ValueError, OSError) as error:
            first = str(error).strip().split("\n")[0]
            raise ValueError(f"{name} is no folder here, and the hub has no answer: {first}") from None

    def open(self, folder: Path) -> tuple[nn.Module, Any]:
        """The model, in the dtype it was saved in, and its tokenizer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from .progress import quiet_unless_seen

        try:
            with quiet_unless_seen():
                model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
                tokenizer = AutoTokenizer.from_pretrained(folder)
        except (KeyError, ValueError, OSError, ImportError) as error:
            raise ValueError(f"{folder} can't be opened as a causal language model: {error}") from None

        def encode(text: str) -> torch.Tensor:
            return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)

        return model, encode

    def task(self, folder: Path) -> Any:
        """The model as a classifier, an encoder or one of speech, if it is one."""
        from .progress import quiet_unless_seen
        from .tasks import open_task

        architectures = _config(folder).get("architectures") or []
        with quiet_unless_seen():
            return open_task(folder, str(architectures[0])) if architectures else None

    def complete(self, source: Path, folder: Path, manifest: Any) -> None:
        """Writes what `from_pretrained` needs: the quantized modules in `config.json`, and the index of the shards."""
        from quanto import Scheme
        from quanto.hosts.layers import Layers
        from quanto.serialization.folder import replace_text

        from .config import QuantoConfig

        groups: dict[tuple[str, str, str, tuple[str, ...]], list[str]] = {}
        for name, entry in manifest.modules.items():
            (parameter,) = entry["parameters"].values()
            zero = _zero_point(folder, manifest, f"{name}.weight_zero_point")
            scales = tuple(s for s in ("input_scale", "output_scale") if f"{name}.{s}" in manifest.tensors)
            key = json.dumps(entry["scheme"], sort_keys=True), parameter["dtype"], zero, scales
            groups.setdefault(key, []).append(name)
        layers = [
            Layers(tuple(names), Scheme.from_dict(json.loads(scheme)), dtype, zero_point=zero, scales=scales).to_dict()
            for (scheme, dtype, zero, scales), names in groups.items()
        ]
        config = _config(source)
        largest = json.loads(max(groups, key=lambda key: len(groups[key]))[0])
        config["quantization_config"] = QuantoConfig(**_fields(largest), modules=layers).to_dict()
        weight_map = {name: manifest.shards[index][0] for name, index in manifest.tensors.items()}
        size = {"total_size": sum(size for _, size in manifest.shards)}
        index = {"metadata": size, "weight_map": weight_map}
        replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        replace_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _fields(scheme: dict[str, Any]) -> dict[str, Any]:
    """Fields of a scheme that `QuantoConfig` has."""
    from quanto.hosts.config import SCHEME

    return {name: value for name, value in scheme.items() if name in SCHEME}


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _skeleton(folder: Path) -> Any:
    """The architecture on the meta device, with the head that its config names."""
    import transformers
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder)
    named = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or ()]
    with torch.device("meta"):
        cls = next((c for c in named if c is not None), None)
        return AutoModel.from_config(config) if cls is None else cls(config)


def _zero_point(folder: Path, manifest: Any, name: str) -> str:
    """dtype of stored zero points; int8 where there are none."""
    from quanto.serialization.header import read_header

    index = manifest.tensors.get(name)
    if index is None:
        return "int8"
    file, size = manifest.shards[index]
    return str(read_header(folder / file, size)[name].dtype).removeprefix("torch.")
