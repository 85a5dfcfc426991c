# SPDX-License-Identifier: Apache-2.0
"""What differs between versions of transformers, 5.17 to 5.23, and of torch: nothing else here asks for one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

__all__ = [
    "copy_converter",
    "is_sharded",
    "let_fsdp_cut_codes",
    "parallel_styles",
    "renames_on_load",
    "watch_missing",
]


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "_local_tensor")


def copy_converter(converter: Any, sources: list[str], targets: list[str]) -> Any:
    """A `WeightConverter` that does the same under other names; it has a method for that since 5.21."""
    operations = [_merge()(op.dim) if type(op).__name__ == "MergeModulelist" else op for op in converter.operations]
    if hasattr(converter, "copy"):
        return converter.copy(sources, targets, operations=operations)
    made = type(converter)(source_patterns=sources, target_patterns=targets, operations=operations)
    made.scope_prefix, made.base_model_prefix = converter.scope_prefix, converter.base_model_prefix
    return made


@cache
def _merge() -> Any:
    """`MergeModulelist` whose reverse splits `[experts, out, 1]` into `[out, 1]`; up to 5.21 it gave `[out]`."""
    from transformers.core_model_loading import MergeModulelist, SplitModulelist

    split = SplitModulelist(0).convert({"a": torch.zeros(2, 3, 1)}, ["a"], ["a.*"])
    if all(t.shape == (3, 1) for t in split.values()):
        return MergeModulelist

    class Split(SplitModulelist):  # type: ignore[misc]
        def convert(
            self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **_: Any
        ) -> dict[str, Any]:
            out: dict[str, Any] = {}
            for source, value in input_dict.items():
                tensor = value[0] if isinstance(value, list) else value
                names = self.get_target_patterns(input_dict, source, target_patterns, tensor.shape[self.dim])
                out.update(zip(names, tensor.unbind(self.dim), strict=True))
            return out

    class Merge(MergeModulelist):  # type: ignore[misc]
        @property
        def reverse_op(self) -> Any:
            return Split(self.dim)

    return Merge


def let_fsdp_cut_codes() -> None:
    """Lets FSDP2 shard whole numbers: up to torch 2.12 it asks each share for a gradient before it takes that back."""
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13) or not torch.distributed.is_available():
        return
    module: Any = importlib.import_module("torch.distributed.fsdp._fully_shard._fsdp_param")
    if module.nn is torch.nn:
        module.nn = _Nn()


class _Nn:
    """`torch.nn` for a module that makes parameters of any dtype."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.nn, name)

    class Parameter(torch.nn.Parameter):
        """Requires a gradient unless told otherwise, if it can."""

        def __new__(cls, data: Any = None, requires_grad: bool | None = None) -> Any:
            able = data is None or data.is_floating_point() or data.is_complex()
            return torch.nn.Parameter(data, able if requires_grad is None else requires_grad)


def watch_missing(model: Any, tell: Callable[[set[str]], None]) -> None:
    """Calls `tell` once, with the names of tensors that no checkpoint file had, before they are given random values.

    transformers has no call for that; this is the method that gives them memory, in 5.17 as in 5.23.
    """
    original = model._move_missing_keys_from_meta_to_device

    def watched(missing_keys: Any, *args: Any, **kwargs: Any) -> Any:
        model.__dict__.pop("_move_missing_keys_from_meta_to_device", None)
        tell(set(missing_keys) - set(getattr(model, "all_tied_weights_keys", None) or {}))
        return original(missing_keys, *args, **kwargs)

    model.__dict__["_move_missing_keys_from_meta_to_device"] = watched


def renames_on_load(model: Any) -> Callable[[str], str]:
    """What a name in a checkpoint, perhaps an old one, is in the model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    entries = get_model_conversion_mapping(model)
    renamings = [e for e in entries if isinstance(e, WeightRenaming)]
    converters = [e for e in entries if isinstance(e, WeightConverter)]

    def rename(name: str) -> str:
        return str(rename_source_key(name, renamings, converters)[0])

    return rename


def parallel_styles() -> tuple[Any, Any]:
    """The table of tensor-parallel styles and the class they inherit; None where this torch has no `distributed`."""
    import torch.distributed

    if not torch.distributed.is_available():
        return None, None
    from transformers.distributed import tensor_parallel

    return tensor_parallel.ALL_PARALLEL_STYLES, tensor_parallel.TensorParallelLayer
