# SPDX-License-Identifier: Apache-2.0
"""`QModule`: what every quantized module is, whatever it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..kernels import Request, kernels
from ..scheme import Scheme
from ..tensor import QTensor, quantize_tensor
from ..weight import CANONICAL, Weight, make_key
from . import activations as act
from . import checkpoint, learned
from .frozen import guard_orphan
from .slot import PARTS, Slot

__all__ = ["QModule"]


class QModule(nn.Module):
    """Mixin of quantized modules; an ordinary module becomes one in place, by a change of its class.

    It keeps its identity, hooks, training flag and every attribute. Each quantized parameter has a slot:

    - trainable: the float parameter is where it was; the forward pass quantizes it on the fly, straight-through.
    - frozen: the parameter is gone; `<name>_packed`, `<name>_scale` and where needed `<name>_zero_point` and
      `<name>_global_scale` are parameters without gradient, and `module.<name>` answers with a `QTensor`.
    """

    #: parameter name -> arrangement (see `Slot`)
    quantized_parameters: ClassVar[dict[str, str]] = {"weight": "rows"}
    #: the operator of `quanto.ops` that the forward pass gives its weights to
    operator: ClassVar[str] = "dequantize"
    #: whether the forward pass quantizes its input, and may hand over a quantized output
    quantizes_input: ClassVar[bool] = False
    quantizes_output: ClassVar[bool] = False

    #: whether weights are arranged anew when they move; not so while other modules hold them too
    _arranges: bool = False
    #: its place among the layers it runs with; see `quanto.nn.joined`
    _joined: Any = None
    _slots: dict[str, Slot]
    _float_class: type[nn.Module]
    input_scale: Tensor | None
    output_scale: Tensor | None

    def init_quantized(self, scheme: Scheme, parameters: dict[str, str] | None = None) -> None:
        """Called once, after the change of class; the slots start trainable."""
        slots = {}
        for name, arrangement in (parameters or self.quantized_parameters).items():
            parameter = getattr(self, name, None)
            if parameter is not None:
                slots[name] = Slot(scheme, tuple(parameter.shape), parameter.dtype, arrangement)
        self.__dict__["_slots"] = slots
        for name in ("input_scale", "output_scale"):
            if name not in self._buffers:
                self.register_buffer(name, None)
        self.prepare()

    def prepare(self) -> None:
        """Makes the parameters that the scheme asks for beside the quantized ones; called when it is new."""
        learned.prepare(self)

    @property
    def scheme(self) -> Scheme:
        """The scheme of the module."""
        return next(iter(self._slots.values())).scheme

    @property
    def frozen(self) -> bool:
        """Whether the weights are codes."""
        return all(f"{name}_packed" in self._parameters for name in self._slots)

    # -- weights -----------------------------------------------------------------------------------------------

    def operand(self, name: str = "weight") -> Weight:
        """A frozen weight as operators take it."""
        p, slot = self._parameters, self._slots[name]
        return Weight(
            p[f"{name}_packed"],  # type: ignore[arg-type]
            p[f"{name}_scale"],  # type: ignore[arg-type]
            p.get(f"{name}_zero_point"),
            p.get(f"{name}_global_scale"),
            slot.qtype,
            slot.block_size,
            slot.size,
            slot.key,
        )

    def qtensor(self, name: str = "weight") -> QTensor:
        """A frozen weight as a `QTensor` in the shape of the float parameter."""
        slot, w = self._slots[name], self.operand(name)
        codes, scale, zero, shared = w[:4]
        if slot.layout != CANONICAL:
            ops.refuse_export(slot.layout)
            unpack = kernels.layouts[slot.layout].unpack
            codes, scale, zero, shared = unpack(w[:4], w.qtype, w.block_size, w.size)
        rows = QTensor(
            codes, scale, zero, shared, qtype=w.qtype, block_size=w.block_size, columns=w.size, dtype=slot.dtype
        )
        return slot.present(rows)

    def effective(self, name: str = "weight", dtype: torch.dtype | None = None) -> Tensor:
        """The weight as floats that carry its quantization error; differentiable (straight-through) if trainable."""
        slot = self._slots[name]
        if f"{name}_packed" in self._parameters:
            return slot.to_float(ops.dequantize(self.operand(name), dtype or slot.dtype))
        if f"{name}_scale" in self._parameters:
            return learned.values(self, name)
        return act.fake_quantize_weight(getattr(self, name), slot)

    def freeze(self, shared: dict[tuple[int, str], list[Tensor | None]] | None = None) -> None:
        """Turns the float weights into codes.

        Args:
            shared: codes already made, by identity of the float parameter and arrangement, so that tied weights stay
                tied.
        """
        for name, slot in self._slots.items():
            if f"{name}_packed" in self._parameters:
                continue
            if nn.utils.parametrize.is_parametrized(self, name):
                from .registry import bake_parametrization

                bake_parametrization(self, name)
            parameter = getattr(self, name)
            slot.shape, slot.dtype = tuple(parameter.shape), parameter.dtype
            key = id(parameter), slot.arrangement
            made = shared.get(key) if shared is not None else None
            if made is None:
                if f"{name}_scale" in self._parameters:
                    made = learned.encode(self, name)
                else:
                    q = quantize_tensor(slot.rows(parameter.detach()), slot.scheme)
                    made = [q.codes, q.scale, q.zero_point, q.global_scale]
                made = [None if t is None else nn.Parameter(t, requires_grad=False) for t in made]
                if shared is not None:
                    shared[key] = made
            self._adopt(name, made)
            guard_orphan(parameter)

    def _adopt(self, name: str, tensors: list[Tensor | None]) -> None:
        """Puts canonical tensors in the place of a float parameter."""
        slot = self._slots[name]
        self._parameters.pop(name, None)
        self.__dict__.pop(name, None)
        for part, tensor in zip(PARTS, tensors, strict=True):
            if tensor is None:
                self._parameters.pop(f"{name}_{part}", None)
            else:
                value = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
                self._parameters[f"{name}_{part}"] = value
        shape = slot.rows_shape()
        slot.qtype = slot.scheme.qtype.name
        slot.block_size, slot.size, slot.layout = slot.scheme.block_size(shape), shape[-1], CANONICAL
        self._rekey(name)

    def leave(self) -> None:
        """Ends what rests on the module's present tensors (see `quanto.nn.joined`), before they become others."""
        seat = self.__dict__.get("_joined")
        if seat is not None:
            seat.joined.part()

    def _rekey(self, name: str) -> None:
        self.leave()
        slot, p = self._slots[name], self._parameters
        scale, zero = p[f"{name}_scale"], p.get(f"{name}_zero_point")
        assert scale is not None
        assert slot.scheme.weights is not None
        slot.key = make_key(slot.scheme.weights, slot.block_size, slot.rows_shape(), scale, zero, slot.layout)

    def request(self, name: str = "weight", dtype: torch.dtype | None = None) -> Request:
        """What the forward pass asks of a kernel for a frozen weight, under activations of `dtype` (default: its)."""
        slot, op = self._slots[name], self.operator
        activations = (slot.scheme.activations or "") if op == "linear" else ""
        device = self._parameters[f"{name}_packed"].device.type  # type: ignore[union-attr]
        return Request.parse("scaled_linear" if activations else op, slot.key, device, dtype or slot.dtype, activations)

    def arrange(self, layout: str | None = None) -> None:
        """Arranges frozen weights for the fastest kernel of their device, or as named (`"canonical"` undoes it)."""
        if layout is None:
            self._arranges = True
        for name, slot in self._slots.items():
            if f"{name}_packed" not in self._parameters:
                continue
            w = self.operand(name)
            wanted = layout
            if wanted is None:
                if w.codes.is_meta or self.operator == "dequantize":
                    continue
                wanted = kernels.layout_for(self.request(name))
            if wanted == slot.layout:
                continue
            self.leave()
            tensors = w[:4]
            if slot.layout != CANONICAL:
                tensors = kernels.layouts[slot.layout].unpack(tensors, w.qtype, w.block_size, w.size)
                self._adopt(name, list(tensors))
            if wanted != CANONICAL:
                tensors = kernels.layouts[wanted].pack(tensors, w.qtype, w.block_size, w.size)
                key_zero = self._parameters.get(f"{name}_zero_point")
                scale = self._parameters[f"{name}_scale"]
                assert scale is not None
                slot.key = make_key(w.qtype, w.block_size, slot.rows_shape(), scale, key_zero, wanted)
                for part, tensor in zip(PARTS, tensors, strict=True):
                    self._parameters.pop(f"{name}_{part}", None)
                    if tensor is not None:
                        self._parameters[f"{name}_{part}"] = nn.Parameter(tensor, requires_grad=False)
                slot.layout = wanted

    # -- attributes --------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        slots = self.__dict__.get("_slots")
        if slots and name in slots and f"{name}_packed" in self._parameters:
            return self.qtensor(name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        slots = self.__dict__.get("_slots")
        if slots and name in slots and f"{name}_packed" in self._parameters:
            if name in self.__dict__:  # of a loader that quantizes while it reads: its float stand-in
                self.__dict__[name] = value
                return
            raise AttributeError(
                f"{name} of {type(self).__name__} is frozen as {slots[name].scheme}; a value assigned to it would be "
                "lost. quanto.dequantize(model) makes it trainable again; load_state_dict converts float checkpoints"
            )
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the weights but keeps their dtypes: `.half()` must not cast scales or reinterpret codes."""
        self.leave()
        probe, leaves = self._probe(fn)
        if leaves:  # while the tensors are still where the kernel's own code runs
            self.arrange(CANONICAL)
        kept = {id(self._parameters[f"{n}_{p}"]) for n in self._slots for p in PARTS if f"{n}_{p}" in self._parameters}
        kept |= {id(b) for b in (self.input_scale, self.output_scale) if b is not None}

        def careful(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in kept and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        result = super()._apply(careful, recurse)  # type: ignore[no-untyped-call]
        if probe is not None and probe.is_floating_point():
            for slot in self._slots.values():
                slot.dtype = probe.dtype
        if self._arranges:  # another device or dtype may have another best kernel
            self.arrange()
        return result

    def _probe(self, fn: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, bool]:
        """What `fn` makes of an empty tensor, and whether it takes arranged weights to a device of another type."""
        slot = next(iter(self._slots.values()), None)
        if slot is None:
            return None, False
        device = checkpoint.device(self)
        probe = fn(torch.empty(0, dtype=slot.dtype, device=device))
        moves = probe.device.type != device.type
        return probe, moves and any(s.layout != CANONICAL for s in self._slots.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return checkpoint.deepcopy(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        return checkpoint.getstate(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        checkpoint.setstate(self, state)

    def extra_repr(self) -> str:
        state = "frozen" if self.frozen else "trainable"
        measured = "" if self.input_scale is None else "calibrated"
        return ", ".join(filter(None, (super().extra_repr(), str(self.scheme), measured, state)))

    # -- state -------------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        checkpoint.canonicalize(self, destination, prefix)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        arranged = any(slot.layout != CANONICAL for slot in self._slots.values())
        checkpoint.load(self, state_dict, prefix, args[0], args[4])
        super()._load_from_state_dict(state_dict, prefix, *args)
        if arranged:
            self.arrange()
