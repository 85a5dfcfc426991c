# SPDX-License-Identifier: Apache-2.0
"""`Step`: one algorithm of a pipeline, and `Block`: what it is given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..nn.base import QModule
from ..nn.frozen import guard_orphan
from ..nn.parameters import QParameters
from ..quantizers import Parameters
from .stream import Stream

__all__ = ["Block", "Step"]


@dataclass
class Block:
    """A part of a model, between what comes in and what goes out.

    Attributes:
        name: of the module in the model.
        module: with quantized modules in it, trainable until a step or the pipeline freezes them.
        inputs: what comes in, behind predecessors that are quantized already.
        originals: what came in when everything was floating; as many batches as `inputs`, and the same object where
            there is no float model to compare with.
        skipped: sentences on what a step left alone.
    """

    name: str
    module: nn.Module
    inputs: Stream
    originals: Stream
    skipped: list[str] = field(default_factory=list)
    #: modules that other parts of the model use too, or hold parameters of
    shared: frozenset[nn.Module] = frozenset()
    #: layer names to losses: the part of a layer's output, in squares, that quantizing lost
    losses: dict[str, float] = field(default_factory=dict)
    #: whether a later step wants `floats`
    keeps_floats: bool = False
    #: layer names to the values, `[out, in]`, that a step rounded to the codes of a frozen layer
    floats: dict[str, Tensor] = field(default_factory=dict)
    #: layer names to the weights of linear layers, also when they are frozen, if a step needs them
    weights: dict[str, Tensor] = field(default_factory=dict)
    #: what the float block makes of `originals`, where a step came across it
    outputs: list[Tensor] = field(default_factory=list)
    #: a copy that equals the block as long as no step has changed it
    copied: nn.Module | None = None
    _float: nn.Module | None = None

    def layers(self) -> dict[str, QModule]:
        """The linear layers that are still floating, by name, in the order of `named_modules`."""
        return {
            name: module
            for name, module in self.module.named_modules()
            if isinstance(module, QModule) and module.operator == "linear" and not module.frozen and module._slots
        }

    @property
    def original(self) -> nn.Module:
        """The copy that `keep_original` made."""
        if self._float is None:
            raise RuntimeError("the block has no float copy: call keep_original() first")
        return self._float

    def keep_original(self) -> None:
        """Copies the block as it is now, floating."""
        self._float = copy.deepcopy(self.module) if self.copied is None else self.copied

    @contextmanager
    def floating(self) -> Iterator[None]:
        """Quantized modules that are not frozen compute with their float weights meanwhile."""
        with as_float(self.module):
            yield


class Step:
    """An algorithm; subclasses override what they need."""

    #: name in `Pipeline("name", …)`
    name: str = ""
    #: whether `Block.originals` is used: the pipeline then runs the float model beside the quantized one
    needs_original: bool = False
    #: whether `Block.floats` is used
    needs_floats: bool = False
    #: whether `Block.weights` is used
    needs_weights: bool = False

    def prepare(self, model: nn.Module) -> None:
        """Changes the whole float model, once, before any data is seen."""

    def apply(self, block: Block) -> None:
        """Changes a block, or freezes layers of it."""

    def finish(self, block: Block) -> None:
        """Freezes layers that are still floating after all steps; the last step comes first."""

    def conclude(self, model: nn.Module, samples: Sequence[Any], progress: bool | None = None) -> None:
        """Changes the whole frozen model, once, after the last block."""


@contextmanager
def computing(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Modules take other forward passes meanwhile."""
    changed = []
    for module, forward in forwards:
        changed.append((module, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, before in changed:
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before


def as_float(module: nn.Module) -> AbstractContextManager[None]:
    """Quantized modules that are not frozen take the forward pass of their float class meanwhile."""
    return computing((m, _bound(m)) for m in module.modules() if isinstance(m, QModule) and not m.frozen)


def _bound(module: QModule) -> Callable[..., Any]:
    if isinstance(module, QParameters):
        return module.float_forward
    function = module._float_class.forward
    return lambda *args, **kwargs: function(module, *args, **kwargs)


def adopt(layer: QModule, codes: Tensor, parameters: Parameters, name: str = "weight") -> None:
    """Freezes a weight of a layer with codes and parameters that a step chose."""
    weight = layer._parameters.get(name)
    layer._adopt(name, [codes, *parameters])
    if weight is not None:
        guard_orphan(weight)


def first_tensor(output: Any) -> Tensor:
    """The output of a block: a tensor, the first of a tuple, or the logits or first values of a model's output."""
    value = getattr(output, "logits", None)
    if value is None:
        value = output[0] if isinstance(output, (tuple, list)) else output
    if isinstance(value, Mapping):
        value = next((v for v in value.values() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim), value)
    if not isinstance(value, Tensor):
        got = type(output).__name__
        raise TypeError(f"a block must return a tensor, a tuple that starts with one, or a mapping with one, got {got}")
    return value


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean square of the difference over that of what is wanted."""
    return (found - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)
