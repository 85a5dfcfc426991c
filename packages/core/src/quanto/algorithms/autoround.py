# SPDX-License-Identifier: Apache-2.0
"""Rounding learned by signed gradients, a block at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import packing, reference
from .._hooks import first_input
from ..nn.base import QModule
from ..quantizers import Parameters, Target, fit
from ..quantizers.grid import round_scale, round_zero
from ..quantizers.spread import spread_parameters
from ..tensor.quantize import make_target
from ..weight import Weight
from .step import Block, Step, adopt, as_float, computing, first_tensor, relative_error

__all__ = ["AutoRound"]


class AutoRound(Step):
    """Signed-gradient rounding (SignRound, Cheng et al., 2023, arXiv:2309.05516).

    For every weight it learns up to half a step that is added before rounding, and for every block of weights a factor
    of the scale, so that the block's output comes near to what the float model's is. Parameters move by the sign of
    their gradient times a rate that falls to zero; where the end is no better than the start, that is kept. Starts from
    least squares, or from the codes of a step before that has frozen layers and said what it rounded, as GPTQ does.

    Args:
        steps: of gradient descent per block.
        rate: of the first step; default `1 / steps`.
        samples: batches per step, chosen at random.
        seed: of the choice.
    """

    name = "autoround"
    needs_original = True
    needs_floats = True

    def __init__(self, steps: int = 200, rate: float | None = None, samples: int = 2, seed: int = 0) -> None:
        if steps < 1 or samples < 1:
            raise ValueError(f"steps and samples must be at least 1, got {steps} and {samples}")
        self.steps, self.rate, self.samples, self.seed = steps, rate or 1 / steps, samples, seed

    def apply(self, block: Block) -> None:
        """Learns and freezes every linear layer of the block that has an integer qtype."""
        layers = {}
        frozen = {name: block.module.get_submodule(name) for name in block.floats}
        for name, layer in (block.layers() | frozen).items():
            assert isinstance(layer, QModule)
            if layer.scheme.qtype.is_integer:
                layers[name] = _Rounding(layer, block.floats.pop(name, None))
            else:
                block.skipped.append(f"{name}: rounding is learned for integers, not for {layer.scheme.weights}")
        if not layers:
            return
        wanted = [self._output(block, i, original=True) for i in range(len(block.inputs))]
        generator = torch.Generator().manual_seed(self.seed)
        learned = [p for r in layers.values() for p in (r.offset, r.factor)]
        roundings = list(layers.values())
        start = self._loss(block, roundings, wanted)
        for step in range(self.steps):
            picked = torch.randperm(len(wanted), generator=generator)[: self.samples].tolist()
            self._gradient(block, roundings, wanted, picked)
            for parameter in learned:
                if parameter.grad is None:  # of an expert that these batches were not sent to
                    continue
                parameter.data.sub_(parameter.grad.sign(), alpha=self.rate * (1 - step / self.steps))
                parameter.grad = None
            for rounding in roundings:
                rounding.clamp()
        loss = self._loss(block, roundings, wanted)
        if not loss < start:
            loss = start
            for rounding in roundings:
                rounding.reset()
        for name, rounding in layers.items():
            block.losses[name] = loss
            rounding.freeze()

    def _loss(self, block: Block, roundings: list[_Rounding], wanted: list[Tensor]) -> float:
        """Over all batches, relative to the output's square."""
        with torch.no_grad(), _computing(roundings):
            for rounding in roundings:
                rounding.current = rounding.weight()
            return sum(float(relative_error(self._output(block, i), w)) for i, w in enumerate(wanted)) / len(wanted)

    def _gradient(self, block: Block, roundings: list[_Rounding], wanted: list[Tensor], picked: list[int]) -> None:
        """Adds gradients of the picked batches."""
        with torch.enable_grad(), _computing(roundings):
            for index in picked:
                for rounding in roundings:
                    rounding.current = rounding.weight()
                loss = relative_error(self._output(block, index), wanted[index]) / len(picked)
                if loss.requires_grad:
                    loss.backward()

    @staticmethod
    def _output(block: Block, index: int, original: bool = False) -> Tensor:
        if not original:
            return first_tensor(block.inputs.run(block.module, index)).float()
        module = block.module if block._float is None else block.original
        with as_float(module):
            return first_tensor(block.originals.run(module, index)).float().detach()


def _computing(roundings: list[_Rounding]) -> AbstractContextManager[None]:
    """Layers compute with their current weights meanwhile."""
    return computing((rounding.layer, rounding.forward()) for rounding in roundings)


class _Rounding:
    """The rounding of one layer: what is learned, and the weight that follows from it."""

    def __init__(self, layer: QModule, floats: Tensor | None) -> None:
        self.layer, slot = layer, layer._slots["weight"]
        slot.scheme = slot.scheme.fitted()
        blocks = slot.scheme.block_size(slot.rows_shape())
        self.target: Target = make_target(slot.scheme, blocks, slot.dtype)
        if floats is None:
            parameter = layer._parameters["weight"]
            assert parameter is not None
            self.float = parameter.detach().float()
            self.start: Parameters = fit(self.float, self.target)
        else:
            w = layer.operand()
            assert w.scale is not None
            self.start = Parameters(w.scale, w.zero_point)
            self.float = self._within(floats, w)
        self.offset = torch.zeros_like(self.float, requires_grad=True)
        self.factor = torch.ones_like(self.start.scale, dtype=torch.float32, requires_grad=True)
        self.current: Tensor = self.float

    def _within(self, floats: Tensor, w: Weight) -> Tensor:
        """The values nearest to `floats` that round to the codes the layer has."""
        scale, zero = spread_parameters(self.start, self.target, floats)
        q = self.target.qtype
        elements = reference.decode(packing.unpack(w.codes, q.bits, w.size), q, torch.float32)
        shift = 0.0 if zero is None else zero
        steps = (floats / scale + shift).clamp(elements - 0.49, elements + 0.49)
        return (steps - shift) * scale

    def _parameters(self) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point of each block; straight-through the rounding to what is stored."""
        scale = self.start.scale.float() * self.factor
        stored = round_scale(scale.detach().clamp(min=1e-30), self.target.scale_dtype)
        zero = self.start.zero_point
        if zero is not None:
            zero = round_zero(zero.float(), self.target.qtype, self.target.zero_dtype)
        return scale + (stored - scale).detach(), zero

    def _elements(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        q = self.target.qtype
        steps = self.float / scale + self.offset
        steps = steps if zero is None else steps + zero
        rounded = steps + (steps.round() - steps).detach()
        return rounded.clamp(q.qmin, q.qmax)

    def weight(self) -> Tensor:
        """The values, differentiable in offset and factor."""
        scale, zero = self._parameters()
        scale, zero = spread_parameters(Parameters(scale, zero), self.target, self.float)
        elements = self._elements(scale, zero)
        return ((elements if zero is None else elements - zero) * scale).to(self.layer._slots["weight"].dtype)

    def forward(self) -> Callable[..., Tensor]:
        """What the layer computes with its current weight."""
        bias = self.layer._parameters.get("bias")
        return lambda *args, **kwargs: F.linear(first_input(args, kwargs), self.current, bias)

    def clamp(self) -> None:
        """Keeps offsets within half a step, and factors near 1."""
        self.offset.data.clamp_(-0.5, 0.5)
        self.factor.data.clamp_(0.5, 1.5)

    def reset(self) -> None:
        """Back to the start."""
        self.offset.data.zero_()
        self.factor.data.fill_(1)

    def freeze(self) -> None:
        """Gives the layer its codes."""
        scale, zero = self._parameters()
        each, shift = spread_parameters(Parameters(scale, zero), self.target, self.float)
        elements = self._elements(each, shift).detach().round()
        codes = packing.pack(reference.encode(elements, self.target.qtype), self.target.qtype.bits)
        stored = None if zero is None else zero.to(self.target.zero_dtype)
        adopt(self.layer, codes, Parameters(scale.detach().to(self.target.scale_dtype), stored))
