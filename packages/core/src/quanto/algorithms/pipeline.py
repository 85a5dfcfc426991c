# SPDX-License-Identifier: Apache-2.0
"""`Pipeline`: steps that need sample data, block by block through any model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._bytes import check_finite
from .._context import context_limit
from ..model import arrange
from ..nn.base import QModule
from ..nn.handover import before_calibration
from .progress import Progress
from .resume import Store
from .samples import generate_samples
from .step import Block, Step, as_float, first_tensor
from .stream import Stream, call, calm, find_chain, find_shared, record

__all__ = ["Pipeline", "calibrate_weights"]

_LENGTH = 512  # tokens of a drawn sequence


class Pipeline:
    """Quantizes the weights of a model with sample data; steps compose in the order given.

    ```python
    quanto.quantize(model, "int4")
    quanto.Pipeline("rotate", "awq", "gptq").run(model, batches)  # the model is frozen then
    ```

    Blocks are the children of the `nn.ModuleList` or `nn.Sequential` that holds most of the quantized weights, if each
    is called with the output of the one before; else the whole model is one block. Only one block's activations are
    held at a time. Quantized layers outside of the chain come last, as one block. What no step freezes is frozen by the
    algorithm of its scheme.

    Args:
        *steps: `Step`s or their names; `"best"` stands for `"gptq", "autoround", "tune"`.
    """

    def __init__(self, *steps: Step | str) -> None:
        from . import steps as known

        self.steps = [made for s in steps for made in (known.make(s) if isinstance(s, str) else [s])]
        for step in self.steps:
            if not isinstance(step, Step):
                raise TypeError(f"steps must be names or Step objects, got {type(step).__name__}")

    def run(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None = None,
        *,
        resume: str | Path | None = None,
        keep: bool = False,
        offload_folder: str | Path | None = None,
        progress: bool | None = None,
    ) -> nn.Module:
        """Runs all steps and freezes the model, in place.

        Args:
            model: after `quanto.quantize`; its weights floating.
            batches: sample data, each a tensor, a tuple of arguments or a mapping of named ones. None: text that the
                model draws from its own predictions (see `generate_samples`), for causal language models.
            resume: a folder for finished blocks: after a kill the same call goes on behind the last of them.
            keep: whether that folder stays at the end, so that the caller can save the model first.
            offload_folder: where what blocks hand on lies in files instead of memory, a few times as large as the
                embedded data; pages of it that no block needs now are the system's to drop. None keeps it in memory.
            progress: whether to show blocks, loss and remaining time; None shows them in a terminal.

        Returns:
            The model itself.

        Raises:
            ValueError: if nothing is quantized, everything is frozen already, a weight holds NaN or infinity, there is
                no data and the model draws none, or the folder is that of another model, data or pipeline.
        """
        if not any(isinstance(m, QModule) and m._slots and not m.frozen for m in model.modules()):
            raise ValueError("nothing to calibrate: call quanto.quantize(model, …) first, and don't freeze it")
        _check_weights(model)
        samples = _drawn(model, progress) if batches is None else list(batches)
        store = None if resume is None else Store(Path(resume), model, samples, self.steps)
        with calm(model), torch.no_grad(), before_calibration():
            for step in self.steps:
                step.prepare(model)
            chain = find_chain(model)
            with as_float(model):
                folder = _made(offload_folder)
                streams = None if chain[0][0] == "" else record(model, chain, samples, folder)
            if streams is None:
                chain = []
            with Progress(len(chain) + 1, progress) as bar:
                if streams is not None:
                    self._chain(chain, streams, find_shared(model, chain), store, bar)
                self._rest(model, samples, store, bar, streams is not None)
            for step in self.steps:
                step.conclude(model, samples, progress)
        arrange(model)
        if store is not None and not keep:
            store.finish()
        return model

    def _chain(
        self,
        chain: Sequence[tuple[str, nn.Module]],
        streams: list[Stream],
        shared: frozenset[nn.Module],
        store: Store | None,
        bar: Progress,
    ) -> None:
        keep = any(step.needs_original for step in self.steps)
        inputs = streams[0]
        originals = inputs.branch() if keep else inputs
        for (name, module), stream in zip(chain, streams, strict=True):
            inputs.others = originals.others = stream.others
            floating = copy.deepcopy(module) if keep else None
            block = Block(name, module, inputs, originals, shared=shared, copied=floating)
            self._apply(block, store)
            if block.outputs:
                originals.values = block.outputs
            elif floating is not None:
                with as_float(floating):
                    _advance(originals, floating)
            _advance(inputs, module)
            bar.advance(block)

    def _rest(self, model: nn.Module, samples: list[Any], store: Store | None, bar: Progress, chained: bool) -> None:
        """What lies outside of the chain: the whole model as one block, in which only that is still floating."""
        inputs = Stream([torch.empty(0)] * len(samples), [((batch,), {}) for batch in samples])
        # Behind a chain there is no float model left to compare with: steps see that by the one stream for both.
        block = Block("", _Whole(model), inputs, inputs if chained else Stream(inputs.values, inputs.others))
        if any(isinstance(m, QModule) and m._slots and not m.frozen for m in model.modules()):
            self._apply(block, store)
        bar.advance(block)

    def _apply(self, block: Block, store: Store | None) -> None:
        if store is not None and store.load(block):
            return
        if any(isinstance(m, QModule) and m._slots and not m.frozen for m in block.module.modules()):
            block.keeps_floats = any(step.needs_floats for step in self.steps[1:])
            if any(step.needs_weights for step in self.steps):
                found = {name: layer._parameters["weight"] for name, layer in block.layers().items()}
                block.weights = {name: weight for name, weight in found.items() if weight is not None}
            for step in self.steps:
                if block.keeps_floats and not any(
                    isinstance(m, QModule) and m._slots and m.frozen for m in block.module.modules()
                ):
                    block.keep_original()  # with what the steps before have made of its weights
                step.apply(block)
                block.copied = None
            for step in reversed(self.steps):
                step.finish(block)
        for module in block.module.modules():
            if isinstance(module, QModule) and not module.frozen:
                module.freeze()
        if store is not None:
            store.save(block)


def _check_weights(model: nn.Module) -> None:
    for name, module in model.named_modules():
        for parameter in module._slots if isinstance(module, QModule) else ():
            value = module._parameters.get(parameter)
            if value is not None:
                check_finite(f"{name}.{parameter}", value)


def _made(folder: str | Path | None) -> Path | None:
    if folder is None:
        return None
    made = Path(folder)
    made.mkdir(parents=True, exist_ok=True)
    return made


def _drawn(model: nn.Module, progress: bool | None) -> list[Any]:
    length = min(_LENGTH, context_limit(model))
    try:
        with as_float(model):
            return list(generate_samples(model, length=length, progress=progress))
    except Exception as error:
        raise ValueError(f"the model draws no text to calibrate on, so give batches: {error}") from error


def _advance(stream: Stream, module: nn.Module) -> None:
    """Replaces the inputs of a block by its outputs, one after another."""
    for index in range(len(stream)):
        stream.values[index] = stream.keep(first_tensor(stream.run(module, index)))


class _Whole(nn.Module):
    """A model as a block; the first argument, which every block has, is not used."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, unused: Any, batch: Any) -> Any:
        return call(self.model, batch)


def calibrate_weights(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    steps: Sequence[Step | str] = ("gptq",),
    *,
    resume: str | Path | None = None,
    keep: bool = False,
    offload_folder: str | Path | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """`Pipeline(*steps).run(model, batches, …)`."""
    pipeline = Pipeline(*steps)
    return pipeline.run(model, batches, resume=resume, keep=keep, offload_folder=offload_folder, progress=progress)
