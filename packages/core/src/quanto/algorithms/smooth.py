# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: moves the outliers of activations into the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..nn.activations import fake_quantize_activation
from ..nn.base import QModule
from ..qtypes import get_qtype
from ..scheme import Scheme
from .absorb import Absorber, find_absorber, scale_inputs
from .sampled import SampledInputs, sample_inputs
from .statistics import input_groups
from .step import Block, Step
from .trial import rounded

__all__ = ["SmoothQuant"]

_MOST = 0.8  # of strengths that are tried: beyond, channels follow the peaks of the sample, and other text is clipped


class SmoothQuant(Step):
    """Per-channel smoothing for quantized activations (Xiao et al., 2022, arXiv:2211.10438).

    Inputs are divided by `size ** strength / max|w| ** (1 - strength)` per channel, weights multiplied by it; the
    inverse goes into the norm or layer before (see `find_absorber`). Layers that read one tensor share their scales.

    Unless a strength is given, each group of layers gets the one whose outputs are nearest to the float layers', with
    activations and weights rounded as the scheme says; size is then the channels' largest magnitude or their root mean
    square, whichever serves better. Errors are counted twice, relative to each token's output and to all outputs
    together: few tokens with huge activations (Sun et al., 2024, arXiv:2402.17762), which many others attend to, hide
    all other tokens in the second, and are hidden by them in the first.

    Where such tokens remain, one static scale for all tokens would round the ordinary ones to zero. Inputs that keep
    less than `static` decibel under a static scale get a scale for each token at run time; what keeps less than `least`
    even so stays floating, and its weight alone is quantized. The block's `skipped` names these layers; their schemes
    say so from then on. A scheme of `dynamic=False` is left as it is.

    Args:
        strength: 0 leaves activations as they are, 1 gives all their channels one range; None searches.
        steps: of the search.
        least: signal to noise that the inputs of a layer must keep, at its output, in decibel; 0 quantizes all inputs
            as the scheme says.
        static: the same for one static scale.
    """

    name = "smooth"

    def __init__(
        self, strength: float | None = None, steps: int = 8, least: float = 25.0, static: float = 32.0
    ) -> None:
        if strength is not None and not 0 <= strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {strength}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if least < 0:
            raise ValueError(f"least must not be negative, got {least}")
        if static < 0:
            raise ValueError(f"static must not be negative, got {static}")
        self.strength, self.steps, self.least, self.static = strength, steps, least, static

    def apply(self, block: Block) -> None:
        """Smooths the inputs of every layer whose inputs something can absorb, and settles how they are quantized."""
        layers = block.layers()
        groups = input_groups(block)
        # What layers are given stays what it is while others are scaled: one pass serves all.
        found = sample_inputs(block, [group[0] for group in groups])
        for group in groups:
            inputs = found.pop(group[0], None)
            if inputs is None:
                continue
            members = [layers[name] for name in group]
            absorber = find_absorber(block, group)
            if absorber is None:
                block.skipped.append(f"{', '.join(group)}: nothing before can take the inverse of the scales")
            else:
                scale = self._best(members, inputs, absorber)
                scale_inputs(absorber, members, scale)
                inputs = inputs.scaled(1 / scale)
            alike: dict[tuple[str | None, bool | None], list[str]] = {}
            for name in group:
                scheme = layers[name].scheme
                alike.setdefault((scheme.activations, scheme.dynamic), []).append(name)
            for names in alike.values():
                self._settle(block, names, [layers[name] for name in names], inputs)

    def _best(self, members: list[QModule], inputs: SampledInputs, absorber: Absorber) -> Tensor:
        """What columns of weights are multiplied by, `[in]` float32."""
        weights = torch.stack([_weight(m).abs().amax(0) for m in members]).amax(0).clamp(min=1e-8)

        def scale_of(size: Tensor, strength: float) -> Tensor:
            scale = (size**strength / weights ** (1 - strength)).clamp(1e-4, 1e4)
            return absorber.expand(absorber.reduce(scale))

        peaks = inputs.peaks.amax(0).clamp(min=1e-8)
        if self.strength is not None:
            return scale_of(peaks, self.strength)
        best, least = torch.ones_like(weights), sum(_errors(m, inputs, _weight(m)) for m in members)
        for size in (peaks, inputs.squares.sqrt().clamp(min=1e-8)):
            for step in range(1, self.steps + 1):
                scale = scale_of(size, _MOST * step / self.steps)
                smoothed = inputs.scaled(1 / scale)
                error = sum(_errors(m, smoothed, _weight(m) * scale) for m in members)
                if error < least:
                    best, least = scale, error
        return best

    def _settle(self, block: Block, group: list[str], members: list[QModule], inputs: SampledInputs) -> None:
        """Chooses static scales, dynamic ones or floating inputs, for layers of one scheme that read one tensor."""
        scheme = members[0].scheme
        if scheme.activations is None or scheme.dynamic is False or not self.least:
            return
        for choice in _choices(scheme):
            kept = min(_signal(m, inputs, choice) for m in members)
            if kept >= (self.least if choice.dynamic else self.static):
                break
            how = "scales for each token" if choice.dynamic else "a static scale"
            block.skipped.append(f"{', '.join(group)}: inputs keep only {kept:.0f} dB under {how}")
        else:
            choice = replace(scheme, activations=None, dynamic=None)
        if choice != scheme and not (choice.dynamic is None and choice.activations):
            for member in members:
                slot = member._slots["weight"]
                slot.scheme = replace(slot.scheme, activations=choice.activations, dynamic=choice.dynamic)


def _choices(scheme: Scheme) -> Iterator[Scheme]:
    if not scheme.dynamic:
        yield scheme
    yield replace(scheme, dynamic=True)


def _weight(layer: QModule) -> Tensor:
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight.detach().float()


def _quantized(inputs: SampledInputs, scheme: Scheme) -> Tensor:
    """The inputs as a scheme rounds them; where it leaves that open with the static scale that calibrating would find.

    That is an average of the batches' peaks, so that some tokens are clipped.
    """
    if scheme.activations is None:
        return inputs.rows
    scale = None
    if not scheme.dynamic:
        scale = inputs.peaks.amax(1).mean().clamp(min=1e-12) / get_qtype(scheme.activations).amax
    return fake_quantize_activation(inputs.rows, scheme.activations, scale)


def _errors(layer: QModule, inputs: SampledInputs, weight: Tensor) -> float:
    """The part of a layer's output, in squares, that rounding inputs and weight loses: of each token, and of all."""
    wanted = F.linear(inputs.rows, weight)
    found = F.linear(_quantized(inputs, layer.scheme), rounded(layer, weight))
    return _relative(found, wanted) + float((found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-30))


def _signal(layer: QModule, inputs: SampledInputs, scheme: Scheme) -> float:
    """What is left of a token's output, on average, when the inputs alone are rounded, in decibel."""
    weight = _weight(layer)
    found, wanted = F.linear(_quantized(inputs, scheme), weight), F.linear(inputs.rows, weight)
    return -10 * math.log10(max(_relative(found, wanted), 1e-12))


def _relative(found: Tensor, wanted: Tensor) -> float:
    each = (found - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-30)
    return float(each.clamp(max=1).mean())
