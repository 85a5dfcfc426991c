# SPDX-License-Identifier: Apache-2.0
"""The batches between two blocks, and the chain of blocks that they run through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..nn.base import QModule
from .offload import offload

__all__ = ["Stream", "call", "find_chain", "find_shared", "record"]

_ALIKE = 4  # tensors of one shape that further ones are compared with


@dataclass
class Stream:
    """One entry per batch of sample data.

    Attributes:
        values: the first argument of the next block, `[batch, …]`, floating.
        others: its further arguments, positional and by name.
        folder: where values lie in files; None keeps them in memory.
        device: where blocks are given them.
    """

    values: list[Tensor]
    others: list[tuple[tuple[Any, ...], dict[str, Any]]]
    folder: Path | None = None
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.values)

    def run(self, module: nn.Module, index: int) -> Any:
        """Calls a block on one batch."""
        args, kwargs = self.others[index]
        return module(self.value(index), *args, **kwargs)

    def value(self, index: int) -> Tensor:
        """One of `values`, where blocks are given it."""
        value = self.values[index]
        return value if self.device is None else value.to(self.device)

    def keep(self, value: Tensor) -> Tensor:
        """What is to become one of `values`, as they are kept."""
        if self.folder is None:
            return value
        self.device = value.device
        return offload(value, self.folder)

    def branch(self) -> Stream:
        """The same values as another stream, which goes another way."""
        return replace(self, values=list(self.values))


def call(model: nn.Module, batch: Any) -> Any:
    """Calls a model on a batch: a tensor, a tuple of arguments, or a mapping of named ones."""
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(batch, Tensor):
        return model(batch.to(where))
    if isinstance(batch, Mapping):
        return model(**{k: v.to(where) if isinstance(v, Tensor) else v for k, v in batch.items()})
    if isinstance(batch, (tuple, list)):
        return model(*(v.to(where) if isinstance(v, Tensor) else v for v in batch))
    raise TypeError(f"a batch must be a tensor, a tuple or a mapping, got {type(batch).__name__}")


def find_chain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of a model: the children of the list (or sequence) that holds most of its quantized weights.

    Returns:
        Names and modules in order; the whole model, named `""`, where there is no such list.
    """
    best: tuple[int, list[tuple[str, nn.Module]]] = (0, [("", model)])
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
            continue
        size = _size(module)
        if size > best[0]:  # of nested lists the outermost
            prefix = f"{name}." if name else ""
            best = size, [(f"{prefix}{i}", child) for i, child in enumerate(module)]
    return best[1]


def _size(module: nn.Module) -> int:
    found = (m for m in module.modules() if isinstance(m, QModule))
    return sum(torch.Size(slot.shape).numel() for m in found for slot in m._slots.values())


def find_shared(model: nn.Module, chain: Sequence[tuple[str, nn.Module]]) -> frozenset[nn.Module]:
    """The modules of blocks that another block, or the model outside of the chain, uses or shares parameters with."""
    blocks = {block for _, block in chain}
    parts = [set(block.modules()) for _, block in chain]
    outside, ahead = set[nn.Module](), [model]
    while ahead:
        module = ahead.pop()
        outside.add(module)
        ahead += [child for child in module.children() if child not in blocks and child not in outside]
    uses = Counter(id(thing) for part in [*parts, outside] for thing in {t for m in part for t in _things(m)})
    return frozenset(m for part in parts for m in part if any(uses[id(thing)] > 1 for thing in _things(m)))


def _things(module: nn.Module) -> list[Any]:
    return [module, *(p for p in module._parameters.values() if p is not None)]


class _Stop(Exception):
    """Ends a forward pass when the last block has been called."""


@dataclass
class _Recorder:
    """Notes what each block is called with."""

    calls: list[tuple[int, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


@torch.no_grad()
def record(
    model: nn.Module, chain: Sequence[tuple[str, nn.Module]], batches: Iterable[Any], folder: Path | None = None
) -> list[Stream] | None:
    """Runs the model on all batches and notes the arguments of every block.

    Args:
        model: to run.
        chain: its blocks, in order.
        batches: what to run it on.
        folder: of the streams.

    Returns:
        A stream per block; all but the first have no values, which only running the blocks will give. None where the
        blocks are not a chain: where one is not called exactly once, in order, with the output of the one before.
    """
    streams = [Stream([], [], folder) for _ in chain]
    alike: dict[tuple[Any, ...], list[Tensor]] = {}
    for batch in batches:
        recorder = _Recorder()
        handles = []
        for index, (_, block) in enumerate(chain):
            handles += _watch(block, index, recorder, last=index == len(chain) - 1)
        try:
            call(model, batch)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if not _chained(recorder, len(chain)):
            return None
        known: dict[int, Tensor] = {}  # by addresses, which hold as long as the recorder does
        for index, args, kwargs in recorder.calls:
            if not index:
                streams[0].values.append(streams[0].keep(args[0].detach()))
            once = partial(_once, known=known, alike=alike)
            streams[index].others.append(tree_map_only(Tensor, once, (args[1:], kwargs)))
    if not streams[0].values:
        raise ValueError("batches is empty: give some sample data")
    return streams


def _once(tensor: Tensor, known: dict[int, Tensor], alike: dict[tuple[Any, ...], list[Tensor]]) -> Tensor:
    """The tensor, or one that another batch had and equals it: masks are large, and often the same for all."""
    if id(tensor) not in known:
        others = alike.setdefault((tensor.shape, tensor.dtype, tensor.device), [])
        found = next((t for t in others if t is tensor or torch.equal(t, tensor)), None)
        if found is None:
            found = tensor
            others[:] = [*others[-_ALIKE + 1 :], tensor]
        known[id(tensor)] = found
    return known[id(tensor)]


def _watch(block: nn.Module, index: int, recorder: _Recorder, last: bool) -> list[Any]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args and "hidden_states" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("hidden_states"),)
        recorder.calls.append((index, args, dict(kwargs)))
        if last:
            raise _Stop

    def after(module: nn.Module, args: Any, output: Any) -> None:
        recorder.outputs.append(output)

    return [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)]


def _chained(recorder: _Recorder, count: int) -> bool:
    if [index for index, _, _ in recorder.calls] != list(range(count)):
        return False
    for (_, args, _), previous in zip(recorder.calls, [None, *recorder.outputs], strict=False):
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return False
        given = previous[0] if isinstance(previous, (tuple, list)) else previous
        if previous is not None and given is not args[0]:
            return False
    return True


@contextmanager
def calm(model: nn.Module) -> Any:
    """Evaluation mode, without a cache of keys and values, which replaying a block would fill twice."""
    flags = [(module, module.training) for module in model.modules()]
    # an encoder-decoder's parts have configurations of their own
    configs: list[Any] = [m.config for m in model.modules() if getattr(getattr(m, "config", None), "use_cache", None)]
    model.eval()
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        for config in configs:
            config.use_cache = True
