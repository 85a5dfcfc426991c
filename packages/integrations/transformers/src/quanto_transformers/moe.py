# SPDX-License-Identifier: Apache-2.0
"""`QExperts`: a mixture-of-experts layer whose weights are quantized, computed by the grouped linear operator."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from quanto import ops
from quanto.nn import QParameters

__all__ = ["QExperts"]


class QExperts(QParameters):
    """An experts module of transformers with quantized parameters; its router is elsewhere and stays floating.

    It replaces what `config._experts_implementation` chooses: tokens are sorted by expert, and each of the two products
    is one call, whatever the number of experts. Inputs stay floating.
    """

    operator: ClassVar[str] = "grouped_linear"

    def forward(self, hidden_states: Tensor, *routing: Tensor, **named: Tensor) -> Tensor:
        """Runs each token through its experts.

        Args:
            hidden_states: `[tokens, features]`; without routing `[experts × tokens, features]`, every token once for
                each expert, as Llama 4 has it.
            *routing: indices of each token's experts and their weights, both `[tokens, k]`. An index that is no
                expert's (expert parallelism marks those of other ranks so) adds nothing.
            **named: the same by name.

        Returns:
            Of `hidden_states`' shape and dtype.
        """
        routing = (*routing, *named.values())
        if not routing:
            return self._for_all(hidden_states)
        index, weights = routing
        tokens, k = index.shape
        order = torch.sort(index.reshape(-1), stable=True)
        rows = hidden_states.reshape(tokens, hidden_states.shape[-1])[order.indices // k]
        out = self._experts(rows, self._ends(order.values))
        back = torch.empty_like(order.indices)
        back[order.indices] = torch.arange(tokens * k, device=back.device)
        out = out[back].view(tokens, k, out.shape[-1]) * weights.unsqueeze(-1)
        return out.sum(dim=1).to(hidden_states.dtype).view_as(hidden_states)

    def float_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass with weights that are not frozen as they are, unrounded; see `QParameters`."""
        before = self.__dict__.get("_unrounded", False)
        self.__dict__["_unrounded"] = True
        try:
            return type(self).forward(self, *args, **kwargs)
        finally:
            self.__dict__["_unrounded"] = before

    def _ends(self, experts: Tensor) -> Tensor:
        """Where the rows of each expert end, int32 `[experts]`, in sorted indices of experts."""
        each = torch.arange(self._count(), device=experts.device, dtype=experts.dtype)
        return torch.searchsorted(experts, each, right=True, out_int32=True)

    def _count(self) -> int:
        name = next(iter(self._slots))
        held = self._parameters.get(f"{name}_packed")
        shape = self._slots[name].shape if held is None else held.shape
        return int(shape[0])

    def _for_all(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        count = self._count()
        ends = torch.arange(1, count + 1, device=rows.device, dtype=torch.int32) * (rows.shape[0] // count)
        return self._experts(rows, ends).view_as(hidden_states)

    def _experts(self, rows: Tensor, ends: Tensor) -> Tensor:
        if torch.is_autocast_enabled(rows.device.type):
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))
        name = "gate_up_proj" if "gate_up_proj" in self._slots else "up_proj"
        hidden = self._linear(name, rows, ends)
        out = self._linear("down_proj", self._activate(hidden, gated=name == "gate_up_proj"), ends)
        norm = getattr(self, "post_expert_norm", None)
        return out if norm is None else norm(out)

    def _activate(self, hidden: Tensor, gated: bool) -> Tensor:
        if not gated:
            return self._act(hidden)
        if hasattr(self, "_apply_gate"):  # every class that transformers' decorator has seen
            made: Tensor = self._apply_gate(hidden)
            return made
        gate, up = hidden.chunk(2, dim=-1)
        return up * self._act(gate)

    def _act(self, x: Tensor) -> Tensor:
        function: Any = self.act_fn
        made: Tensor = function(x)
        return made

    def _linear(self, name: str, rows: Tensor, ends: Tensor) -> Tensor:
        bias = self._parameters.get(f"{name}_bias")
        if f"{name}_packed" in self._parameters:
            return ops.grouped_linear(rows, self.operand(name), bias, ends)
        if self.watch is not None:
            self.watch(name, rows, ends)
        floats = getattr(self, name) if self.__dict__.get("_unrounded") else self.effective(name)
        weight = self._slots[name].rows(floats)
        out, start = [], 0
        for expert, end in enumerate(ends.tolist()):
            out.append(F.linear(rows[start:end], weight[expert], None if bias is None else bias[expert]))
            start = end
        return torch.cat([*out, rows.new_zeros(rows.shape[0] - start, weight.shape[1])])
