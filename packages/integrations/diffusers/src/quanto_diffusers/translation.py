# SPDX-License-Identifier: Apache-2.0
"""Tensors of checkpoint files, turned into those of the quantized model before diffusers' loader sees them.

The loader reads a file whole (mapped into memory, so that floats cost nothing until they are touched), shows it to the
quantizer, and then places tensor by tensor. So float weights become codes and scales one after another in between, on
the device where they are going to be, and every path behind that (devices, disk, missing names) sees ordinary names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quanto.hosts.rows import quantize_rows
from quanto.hosts.upstream import CODES, read_codes
from quanto.nn import QModule
from quanto.nn.slot import PARTS

__all__ = ["Translation"]


class Translation:
    """What becomes of the tensors of a checkpoint.

    Args:
        modules: the frozen modules, by name.
        dtype: that the loader casts floating tensors to.
    """

    def __init__(self, modules: Iterable[tuple[str, QModule]], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._exact: dict[str, Tensor] = {}
        self.weights: dict[str, tuple[QModule, str]] = {}
        self.buffers: dict[str, tuple[QModule, str]] = {}
        for name, module in modules:
            for leaf in module._slots:
                if f"{leaf}_packed" in module._parameters:
                    self.weights[_join(name, leaf)] = module, leaf
            for leaf in ("input_scale", "output_scale"):
                self.buffers[_join(name, leaf)] = module, leaf

    def owns(self, name: str) -> bool:
        """Whether a tensor is a part of a quantized weight, or a scale of activations."""
        if name in self.buffers:
            return True
        whole = next((name.removesuffix(f"_{part}") for part in reversed(PARTS) if name.endswith(f"_{part}")), "")
        return whole in self.weights

    def parts(self, weight: str) -> Iterator[str]:
        """Names of the tensors that a weight becomes."""
        module, leaf = self.weights[weight]
        return (f"{weight}_{part}" for part in PARTS if f"{leaf}_{part}" in module._parameters)

    def names(self, keys: Iterable[str]) -> list[str]:
        """The names of a checkpoint's tensors, as they will be."""
        out: list[str] = []
        for key in keys:
            whole = key.partition("._")[0]
            if key in self.weights:
                out += self.parts(key)
            elif whole in self.weights and key.endswith(CODES):
                out += self.parts(whole)
            elif whole not in self.weights and not self._unused(key):
                out.append(key)
        return out

    def _unused(self, key: str) -> bool:
        """Whether it is a scale of activations that optimum-quanto writes of every module, also of those without."""
        found = self.buffers.get(key)
        return found is not None and getattr(*found) is None

    @torch.no_grad()
    def tensors(self, state: Mapping[str, Tensor], device: Callable[[str], Any]) -> dict[str, Tensor]:
        """The tensors of a file, with codes and scales in the place of weights.

        Args:
            state: of one file.
            device: where a tensor of that name is going to be.

        Raises:
            ValueError: naming the tensor that does not fit.
        """
        out: dict[str, Tensor] = {}
        for key in state:
            whole = key.partition("._")[0]
            if key in self.weights:
                out.update(self._quantize(key, state[key], device(key)))
            elif whole in self.weights:
                if key.endswith(CODES):
                    out.update(self._inherit(whole, state))
            elif not self._unused(key):
                out[key] = state[key]
        for key, tensor in out.items():
            if self.owns(key) and tensor.is_floating_point() and tensor.dtype != self.dtype:
                self._exact[key] = tensor
        return out

    def undo_casts(self, model: nn.Module) -> None:
        """Gives scales of another dtype than the model's their values again, in memory and on disk.

        The loader casts what it offloads, on the way to the quantizer or past it.
        """
        for name, tensor in self._exact.items():
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            held = module._parameters.get(leaf)
            if held is None:
                module._buffers[leaf] = tensor.to(module._buffers[leaf].device)  # type: ignore[union-attr]
            elif held.is_meta:
                _write(model, name, tensor)
                module._parameters[leaf] = nn.Parameter(torch.empty_like(tensor, device="meta"), False)
            else:
                module._parameters[leaf] = nn.Parameter(tensor.to(held.device), False)
        self._exact.clear()

    def _quantize(self, name: str, value: Tensor, device: Any) -> dict[str, Tensor]:
        module, leaf = self.weights[name]
        slot = module._slots[leaf]
        if tuple(value.shape) != slot.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)} in the checkpoint and {slot.shape} in the model")
        if not value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype} in the checkpoint, where floats are needed to quantize them")
        made = quantize_rows(slot, slot.rows(value.to(device=device, dtype=slot.dtype)))
        return {f"{name}_{part}": t for part, t in zip(PARTS, made, strict=True) if t is not None}

    def _inherit(self, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        module, leaf = self.weights[name]
        prefix = f"{name}."
        parts = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(f"{prefix}_")}
        try:
            made = read_codes(parts, module._slots[leaf], module.get_parameter(f"{leaf}_packed").dtype)
        except KeyError as error:
            raise ValueError(f"{prefix}{error.args[0]} is missing: a part of a quantized weight") from None
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{prefix}{error}") from None
        return {f"{name}_{part}": tensor for part, tensor in made.items()}


def _write(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Overwrites a tensor that accelerate reads from disk."""
    from accelerate.utils import offload_weight

    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            files = getattr(getattr(one, "weights_map", None), "dataset", None)
            if files is not None and name in getattr(files, "index", ()):
                offload_weight(tensor, name, files.save_folder, files.index)
                return


def _join(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf
