# SPDX-License-Identifier: Apache-2.0
"""Float stand-ins: what a frozen model shows in the place of its weights while it is loaded.

transformers' loader reads a tensor of a float checkpoint only if the model's state dict has its name, and passes it,
cast and sharded like what it found under that name, to an operation of ours. So until then the state dict of each
frozen module shows its float weight, on the meta device, in the place of codes and scales.

Of a saved model the state dict shows codes and scales, but there too `module.weight` is a stand-in: models' own
initialization draws random numbers into whatever weights of other modules it finds, unless they say they have values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from quanto.hosts.rows import rows_are_alone
from quanto.nn import QModule
from quanto.nn.slot import PARTS

from . import parallel
from .adapter import is_sharded

__all__ = ["StandIns"]


class StandIns:
    """The stand-ins of a model that is being loaded.

    Args:
        modules: frozen modules on the meta device, with their names.
        in_state_dict: whether a float checkpoint is about to be read.

    Attributes:
        waiting: full name of each float weight that was not quantized yet -> its module and its name there.
        done: those that were, or need not be.
        failed: what is wrong with those that could not be. `finish.missing` raises it: what an operation raises,
            transformers only logs.
    """

    def __init__(self, modules: Iterable[tuple[str, QModule]], in_state_dict: bool) -> None:
        self.in_state_dict = in_state_dict
        self.waiting: dict[str, tuple[QModule, str]] = {}
        self.done: dict[str, tuple[QModule, str]] = {}
        self.failed: dict[str, str] = {}
        self._handles: list[Any] = []
        self._floats: dict[str, dict[str, nn.Parameter]] = {}
        for name, module in modules:
            if not module._slots or not module.frozen:
                continue
            for leaf, slot in module._slots.items():
                empty = torch.empty(slot.shape, dtype=slot.dtype, device="meta")
                module.__dict__[leaf] = nn.Parameter(empty, requires_grad=False)
                module.__dict__[leaf]._is_hf_initialized = True
                full = f"{name}.{leaf}" if name else leaf
                (self.waiting if in_state_dict else self.done)[full] = (module, leaf)
            if in_state_dict:
                self._handles.append(module._register_state_dict_hook(_show))  # type: ignore[no-untyped-call]

    def __contains__(self, name: str) -> bool:
        return self.in_state_dict and (name in self.waiting or name in self.done)

    def take(self, name: str) -> tuple[QModule, str]:
        """The module and parameter that a float tensor of that name is for; it waits no longer."""
        self.done[name] = self.waiting.pop(name)
        return self.done[name]

    def size(self, name: str) -> int:
        """Bytes of what will be in the place of a stand-in."""
        module, leaf = self.waiting.get(name) or self.done[name]
        parts = (module._parameters.get(f"{leaf}_{part}") for part in PARTS)
        return sum(p.numel() * p.element_size() for p in parts if p is not None)

    def release(self, names: Iterable[str]) -> None:
        """Makes modules float again whose weights the checkpoint lacks, for transformers to give them values."""
        for name in names:
            module, leaf = self.waiting[name]
            stand_in = module.__dict__.pop(leaf)
            parts = {n: module._parameters.pop(n) for n in _names(leaf) if n in module._parameters}
            self._floats[name] = parts  # type: ignore[assignment]
            module.__dict__["_quanto_class"] = type(module)
            module.__dict__.pop("_is_hf_initialized", None)
            module.__class__ = module._float_class  # type: ignore[assignment]
            module._parameters[leaf] = nn.Parameter(torch.empty_like(stand_in))

    def resume(self, quantize: Callable[[QModule, str, Tensor, str], Iterable[Tensor | None]]) -> None:
        """Quantizes what `release` made float, by a function of module, parameter, value and name."""
        for name, parts in self._floats.items():
            module, leaf = self.waiting.pop(name)
            value = module._parameters.pop(leaf)
            assert value is not None
            if value.is_meta:
                raise ValueError(f"the checkpoint lacks {name!r}, and it cannot be made up on the device 'meta'")
            module.__class__ = module.__dict__.pop("_quanto_class")
            module._parameters.update(parts)
            for part, tensor in zip(_names(leaf), quantize(module, leaf, value.detach(), name), strict=True):
                if tensor is not None:
                    module._parameters[part] = nn.Parameter(tensor, requires_grad=False)
            self.done[name] = (module, leaf)

    def remove(self) -> None:
        """Ends it: state dicts and attributes show codes and scales again."""
        for handle in self._handles:
            handle.remove()
        for module, leaf in (*self.waiting.values(), *self.done.values()):
            module.__dict__.pop(leaf, None)


def _names(leaf: str) -> list[str]:
    return [f"{leaf}_{part}" for part in PARTS]


def _show(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for leaf, slot in module._slots.items():
        codes = module._parameters.get(f"{leaf}_packed")
        stand_in = module.__dict__.get(leaf)
        if codes is None or stand_in is None:
            continue
        for name in _names(leaf):
            state.pop(f"{prefix}{name}", None)
        if is_sharded(codes) and not is_sharded(stand_in):
            stand_in = parallel.stand_in(stand_in, slot, codes, rows_are_alone(slot))
            stand_in._is_hf_initialized = True
            module.__dict__[leaf] = stand_in
        state[f"{prefix}{leaf}"] = stand_in
