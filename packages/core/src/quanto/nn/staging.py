# SPDX-License-Identifier: Apache-2.0
"""`Staging`: changes a model whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..tensor import quantize_tensor
from ..ties import retie
from ..weight import CANONICAL
from .base import QModule
from .frozen import guard_orphan
from .slot import PARTS

__all__ = ["Staging"]


class Staging:
    """The structure of a model without its values, on which changes are tried before they are made.

    `model` has the modules of the original, class by class, with the same attributes, and tensors on the meta device
    in the place of its parameters and buffers. Whatever fails on it leaves the original as it was; `commit` then hands
    everything over by changes of references alone, which take microseconds a module and cannot fail half-way.

    Unlike `copy.deepcopy`, this copies no attribute, so it works for every module, and no memory is needed.

    Args:
        original: the model.

    Raises:
        ValueError: for parameters that a plain tensor cannot replace (lazy, sharded), and scripted modules.
    """

    def __init__(self, original: nn.Module) -> None:
        self._pairs: list[tuple[str, nn.Module, nn.Module]] = []
        self._placeholders: dict[int, tuple[Tensor, Tensor]] = {}  # by identity of either: (placeholder, original)
        self._devices: dict[str, torch.device] = {}
        for tensors in (original.named_buffers, original.named_parameters):
            for name, tensor in tensors(remove_duplicate=False):
                if not tensor.is_meta:
                    self._devices[name] = self._devices[name.rpartition(".")[0] + "."] = tensor.device
        self.model = self._module("", original, {})
        self._arrange_canonically()

    def _module(self, name: str, module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"module {name!r} is scripted; load into the module it was made from")
        staged: nn.Module = object.__new__(type(module))
        made[id(module)] = staged
        self._pairs.append((name, module, staged))
        state = dict(module.__dict__)
        for key, value in state.items():
            if key in _OWN or type(value) in (list, dict):  # recurrent layers keep a list of their weights
                state[key] = copy.copy(value)
        prefix = f"{name}." if name else ""
        for table in ("_parameters", "_buffers"):
            for leaf, tensor in state[table].items():
                state[table][leaf] = None if tensor is None else self._tensor(prefix + leaf, tensor)
        for leaf, child in state["_modules"].items():
            state["_modules"][leaf] = None if child is None else self._module(prefix + leaf, child, made)
        if isinstance(module, QModule):
            state["_slots"] = {slot_name: replace(slot) for slot_name, slot in module._slots.items()}
        staged.__dict__.update(state)
        return staged

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        """A placeholder, the same for the same tensor."""
        if id(tensor) not in self._placeholders:
            if nn.parameter.is_lazy(tensor):
                raise ValueError(f"{name!r} has no shape yet: run the model once before loading")
            if hasattr(type(tensor), "__tensor_flatten__"):
                raise ValueError(f"{name!r} is a {type(tensor).__name__}: load before sharding or wrapping the model")
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, tensor.requires_grad)
            self._placeholders[id(tensor)] = self._placeholders[id(empty)] = (empty, tensor)
        return self._placeholders[id(tensor)][0]

    def _arrange_canonically(self) -> None:
        """A kernel's layout means nothing without values; what comes in is canonical."""
        for _, _, module in self._pairs:
            if not isinstance(module, QModule):
                continue
            for name, slot in module._slots.items():
                if slot.layout != CANONICAL:
                    rows = torch.empty(slot.rows_shape(), dtype=slot.dtype, device="meta")
                    q = quantize_tensor(rows, slot.scheme)
                    module._adopt(name, [q.codes, q.scale, q.zero_point, q.global_scale])

    def device(self, name: str, default: torch.device) -> torch.device:
        """Where a tensor of the model's state belongs: where it is, or else where its module is."""
        return self._devices.get(name) or self._devices.get(name.rpartition(".")[0] + ".") or default

    def fill(self, state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
        """Loads tensors: the very ones given, not copies.

        Args:
            state: every tensor of the model's state, each once.
            aliases: further names of tied tensors; those become one parameter.

        Raises:
            RuntimeError: as `load_state_dict` does.
            ValueError: if one parameter of the original would get two values.
        """
        whole = {**state, **{name: state[first] for name, first in aliases.items()}}
        self.model.load_state_dict(whole, strict=True, assign=True)
        retie(self.model, aliases)
        self._plan()

    def _plan(self) -> None:
        """Decides which parameters keep their identity, so that optimizers and ties outside the model stay valid."""
        self._kept: dict[int, Tensor] = {}  # by identity of the new parameter: the old one, which takes its values
        values: dict[int, tuple[Tensor, str]] = {}
        for name, original, staged in self._pairs:
            parts = _parts(staged)
            for leaf, new in staged._parameters.items():
                old = original._parameters.get(leaf)
                if new is None or old is None or id(new) in self._placeholders or leaf in parts or old.is_meta:
                    continue
                full = f"{name}.{leaf}" if name else leaf
                value, other = values.setdefault(id(old), (new, full))
                if value is not new:
                    raise ValueError(
                        f"{full!r} and {other!r} are one parameter in the model, and two in what is loaded"
                    )
                if torch._has_compatible_shallow_copy_type(old, new):
                    self._kept.setdefault(id(new), old)

    def commit(self) -> None:
        """Makes the changes; optimizers that hold a float weight replaced by codes raise at their next step."""
        news = {id(p): p for _, _, staged in self._pairs for p in staged._parameters.values() if p is not None}
        for key, old in self._kept.items():
            old.data = news[key].data
            old.grad = None
        before = [p for _, original, _ in self._pairs for p in original._parameters.values() if p is not None]
        for _, original, staged in self._pairs:
            for table in ("_parameters", "_buffers"):
                tensors = staged.__dict__[table]
                tensors.update({leaf: self._final(tensor) for leaf, tensor in tensors.items()})
            self._take(original, staged)
        living = {id(p) for _, original, _ in self._pairs for p in original._parameters.values()}
        for parameter in before:
            if id(parameter) not in living and not parameter.is_meta:
                guard_orphan(parameter)

    def _take(self, original: nn.Module, staged: nn.Module) -> None:
        """Gives a module the class and the attributes of its staged double; its children stay."""
        if isinstance(original, QModule):
            original.leave()
            staged.__dict__.pop("_joined", None)
        original.__class__ = type(staged)
        mine, its = original.__dict__, staged.__dict__
        for key in [k for k in mine if k not in its]:
            del mine[key]
        for key, value in its.items():
            if key == "_modules":
                continue
            if key in _OWN:
                mine[key].clear()
                mine[key].update(value)
            elif type(value) is list and type(mine.get(key)) is list:
                mine[key][:] = [self._final(v) if isinstance(v, Tensor) else v for v in value]
            elif type(value) is dict and type(mine.get(key)) is dict and key != "_slots":
                final = {k: self._final(v) if isinstance(v, Tensor) else v for k, v in value.items()}
                mine[key].clear()
                mine[key].update(final)
            else:
                mine[key] = value

    def _final(self, tensor: Tensor | None) -> Tensor | None:
        """What takes the place of a staged tensor."""
        if tensor is None:
            return None
        if id(tensor) in self._placeholders:
            return self._placeholders[id(tensor)][1]
        return self._kept.get(id(tensor), tensor)


#: what every module keeps in containers of its own; they are filled anew, not replaced.
_OWN = frozenset(key for key, value in nn.Module().__dict__.items() if isinstance(value, (dict, set)))


def _parts(module: nn.Module) -> set[str]:
    return {f"{n}_{p}" for n in module._slots for p in PARTS} if isinstance(module, QModule) else set()
