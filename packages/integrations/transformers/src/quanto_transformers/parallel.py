# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism: how codes and scales are cut where transformers' plan cuts a float weight.

The plan says of each module which dimension of its weight is spread over the ranks. Codes lie as the weight does, a
scale as its groups. A scale that has no dimension to cut, because a whole row shares it, goes to every rank.

    colwise   weight [out, in] cut along out   codes along out    scale [out, groups] along out
    rowwise   weight [out, in] cut along in    codes along bytes  scale along groups; [out, 1] to every rank
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from quanto.nn import QModule
from quanto.nn.slot import PARTS, Slot

from .adapter import is_sharded

__all__ = ["STYLE", "localize", "plan_parts", "register_style", "shard_like"]

#: name of the style that all parts have in the plan; what it does is written on each module.
STYLE = "quanto"

_ROWS = {"colwise", "colwise_gather_output", "colwise_rep", "packed_colwise"}
_COLUMNS = {"rowwise", "rowwise_split_input", "rowwise_rep", "packed_rowwise"}
#: a weight that lies as [in, out] is stored as rows [out, in].
_TRANSPOSED = {
    "colwise": "rowwise",
    "rowwise": "colwise",
    "packed_colwise": "packed_rowwise",
    "packed_rowwise": "packed_colwise",
}


def plan_parts(plan: dict[str, str], modules: Iterable[tuple[str, QModule]]) -> None:
    """Adds the parts of quantized weights to a plan of transformers, and takes the weights that are gone out of it."""
    gone: set[str] = set()
    for name, module in modules:
        for leaf, slot in module._slots.items():
            generic, owner = (_wildcard(n) for n in (f"{name}.{leaf}", name))
            style = plan.get(generic) or plan.get(owner)
            if style not in _ROWS | _COLUMNS or f"{leaf}_packed" not in module._parameters:
                continue
            own = _TRANSPOSED.get(style, style) if slot.arrangement == "transposed" else style
            for part in PARTS:
                parameter = module._parameters.get(f"{leaf}_{part}")
                if parameter is not None:
                    module.__dict__.setdefault("_quanto_styles", {})[f"{leaf}_{part}"] = (
                        None if _on_every_rank(parameter, own) else own
                    )
                    plan[f"{generic}_{part}"] = STYLE
            gone.add(generic)
        module.__dict__["_hf_quantized_needs_local_tp"] = True  # the forward reads plain tensors
    for generic in gone & plan.keys():
        del plan[generic]


def _wildcard(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _on_every_rank(part: Tensor, style: str) -> bool:
    return part.ndim < 2 or (style in _COLUMNS and part.shape[-1] == 1)


def register_style(styles: Any, base: type) -> None:
    """Makes the style known.

    Args:
        styles: `ALL_PARALLEL_STYLES` of transformers.
        base: its `TensorParallelLayer`.
    """
    if STYLE in styles:
        return

    class Parts(base):  # type: ignore[misc]
        """Shards each part of a quantized weight as `plan_parts` has written on its module."""

        def shard_param(self, module: Any, param: str, mesh: Any) -> None:
            style = module.__dict__["_quanto_styles"][param]
            if style is not None:
                _check(module, param, style, mesh)
                styles[style].shard_param(module, param, mesh)

    styles.register(STYLE, Parts())


def _check(module: QModule, param: str, style: str, mesh: Any) -> None:
    """Raises where a cut would run through a group or a byte."""
    leaf, _, part = param.rpartition("_packed")
    if part or not leaf:
        return
    slot, ranks = module._slots[leaf], mesh.size()
    *_, rows, columns = slot.rows_shape()
    blocks = slot.block_size
    if not blocks:
        return
    row, group = (blocks[-2] if len(blocks) > 1 else 1), blocks[-1]
    what = f"{type(module).__name__} [{rows}, {columns}] in blocks of [{row}, {group}] on {ranks} ranks"
    if style in _ROWS and row > 1 and (rows % ranks or rows // ranks % row):
        raise ValueError(f"tensor parallelism would cut through blocks of rows: {what}")
    if style in _COLUMNS:
        share = columns // ranks
        bits = slot.scheme.qtype.bits
        if columns % ranks or share * bits % 8 or (group < columns and share % group):
            raise ValueError(
                f"tensor parallelism would cut through groups: {what}; choose a group_size that divides {share}"
            )


def shard_like(tensor: Tensor, parameter: Any) -> Tensor:
    """This rank's share of a whole tensor, by the placements of a DTensor; the tensor itself for other parameters."""
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    made: Any = distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    local: Tensor = made.to_local()
    return local


def localize(module: QModule) -> None:
    """Makes a module's own account of its weights that of this rank's shares, which its forward computes with.

    The whole shapes stay in `_quanto_whole`.
    """
    for leaf, slot in module._slots.items():
        packed: Any = module._parameters.get(f"{leaf}_packed")
        if packed is None or not is_sharded(packed) or not _cuts(packed):
            continue
        module.__dict__.setdefault("_quanto_whole", {})[leaf] = slot.shape
        shape = list(slot.rows_shape())
        for dim, size, rank in _cuts(packed):
            step = -(-shape[dim] // size)
            shape[dim] = max(0, min(step, shape[dim] - rank * step))
        blocks = tuple(min(b, n) for b, n in zip(slot.block_size, shape, strict=True)) if slot.block_size else ()
        slot.shape = tuple(shape) if slot.arrangement != "transposed" else (*shape[:-2], shape[-1], shape[-2])
        slot.block_size, slot.size = blocks, shape[-1]
        module._rekey(leaf)


def _cuts(packed: Any) -> list[tuple[int, int, int]]:
    """Of each cut by tensor parallelism: dimension, number of ranks, this rank. FSDP gathers before the forward."""
    mesh, names = packed.device_mesh, packed.device_mesh.mesh_dim_names or ("tp",)
    return [
        (placement.dim % packed.ndim, mesh.size(i), mesh.get_local_rank(i))
        for i, (name, placement) in enumerate(zip(names, packed.placements, strict=True))
        if name == "tp" and hasattr(placement, "dim")
    ]


def stand_in(empty: nn.Parameter, slot: Slot, packed: Any, alone: bool) -> Any:
    """What a loader is shown in the place of a sharded weight.

    Args:
        empty: the float weight on meta.
        slot: of the weight.
        packed: its codes, a DTensor.
        alone: whether rows can be quantized one by one; then each rank reads and quantizes its own share. Otherwise it
            is shown the whole weight, and takes its share of the codes.
    """
    last = packed.ndim - 1
    columns = [p.dim % packed.ndim == last for p in packed.placements if hasattr(p, "dim")]
    if not alone or slot.arrangement != "rows" or (any(columns) and slot.block_size[-1] >= slot.rows_shape()[-1]):
        return empty
    from torch.distributed.tensor import distribute_tensor

    made = distribute_tensor(empty.detach(), packed.device_mesh, packed.placements, src_data_rank=None)
    return nn.Parameter(torch.Tensor.detach(made), requires_grad=False)
