# SPDX-License-Identifier: Apache-2.0
"""Rotation of the residual stream, fused into the weights: no outlier channels, the same function."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.base import QModule
from .step import Step

__all__ = ["Rotate", "hadamard", "rotation"]

_READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")
_NORMS = {"input_layernorm": _READERS[:3], "post_attention_layernorm": _READERS[3:]}


class Rotate(Step):
    """A random Hadamard rotation of the residual stream (QuaRot, Ashkboos et al., 2024, arXiv:2404.00456).

    Every layer that reads the stream is multiplied by the rotation, every layer that writes it by its inverse, so that
    the float model computes what it did, with nothing added at run time. For that the weights of the norms move into
    the layers behind them; a head that is tied to the embedding is untied, for it takes the last norm's weights.

    Served: decoders built as Llama is (Llama, Mistral, Qwen2, SmolLM2 and so on): `model.layers` of RMS norms,
    `self_attn` and `mlp`. Anything else is refused with the reason.

    Args:
        seed: of the random signs.
    """

    name = "rotate"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @torch.no_grad()
    def prepare(self, model: nn.Module) -> None:
        """Rotates the weights.

        Raises:
            ValueError: if the architecture is another, or a layer is frozen; nothing is changed then.
        """
        inner, head = _parts(model)
        width = inner.embed_tokens.weight.shape[1]
        q = rotation(width, self.seed).to(inner.embed_tokens.weight.device)
        if head.weight is inner.embed_tokens.weight:
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
            config: Any = getattr(model, "config", None)
            if config is not None:
                config.tie_word_embeddings = False
        _multiply(head, inner.norm.weight, q)
        inner.norm.weight.fill_(1)
        _set(inner.embed_tokens.weight, inner.embed_tokens.weight.double() @ q)
        for layer in inner.layers:
            for norm, readers in _NORMS.items():
                gain = getattr(layer, norm).weight
                for name in readers:
                    _multiply(layer.get_submodule(name), gain, q)
                gain.fill_(1)
            for name in _WRITERS:
                linear = layer.get_submodule(name)
                _set(linear.weight, q.T @ linear.weight.double())
                if linear.bias is not None:
                    _set(linear.bias, linear.bias.double() @ q)


def _multiply(linear: Any, gain: Tensor, q: Tensor) -> None:
    _set(linear.weight, (linear.weight.double() * gain.double()) @ q)


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.to(parameter.dtype))


def _parts(model: nn.Module) -> tuple[Any, Any]:
    """The decoder and the head of a model that can be rotated."""
    refusal = "step 'rotate' needs a decoder built as Llama is"
    inner, head = getattr(model, "model", None), getattr(model, "lm_head", None)
    layers = getattr(inner, "layers", None)
    if inner is None or not isinstance(layers, nn.ModuleList) or not isinstance(head, nn.Linear):
        raise ValueError(f"{refusal}: {type(model).__name__} has no model.layers and lm_head")
    for index, layer in enumerate(layers):
        names = {name for name, _ in layer.named_modules()}
        if missing := [n for n in (*_READERS, *_WRITERS, *_NORMS) if n not in names]:
            raise ValueError(f"{refusal}: model.layers.{index} has no {', '.join(missing)}")
        # Anything else with weights between stream and stream would not be rotated.
        known = {*_READERS, *_WRITERS, *_NORMS}
        others = [n for n, m in layer.named_modules() if m._parameters and n not in known]
        if unknown := [n for n in others if not n.startswith("self_attn.") or not n.endswith("_norm")]:
            raise ValueError(f"{refusal}: model.layers.{index} has {', '.join(unknown)} too")
    known = {"embed_tokens", "norm"}
    others = [n for n, m in inner.named_modules() if m._parameters and not n.startswith("layers.") and n not in known]
    if others:
        raise ValueError(f"{refusal}: model has {', '.join(others)} too")
    for name, module in model.named_modules():
        if isinstance(module, QModule) and module.frozen:
            raise ValueError(f"step 'rotate' needs float weights: {name} is frozen")
    norms = [getattr(inner, "norm", None), *(getattr(layer, n) for layer in layers for n in _NORMS)]
    for norm in norms:
        if "RMSNorm" not in type(norm).__name__ or "Gemma" in type(norm).__name__:
            raise ValueError(f"{refusal}: its norm {type(norm).__name__} is not a plain RMS norm")
    return inner, head


def hadamard(size: int) -> Tensor:
    """Sylvester's Hadamard matrix over `sqrt(size)`, orthogonal, float64 `[size, size]`; size is a power of two."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"size must be a power of two, got {size}")
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def rotation(size: int, seed: int = 0) -> Tensor:
    """A random orthogonal matrix, float64 `[size, size]`: Hadamard with random signs.

    Where size is no power of two, its odd part is rotated by a random orthogonal matrix (576 = 9 x 64).
    """
    generator = torch.Generator().manual_seed(seed)
    power = size & -size
    matrix = hadamard(power)
    if size != power:
        odd = torch.linalg.qr(torch.randn(size // power, size // power, generator=generator, dtype=torch.float64))[
            0
        ].contiguous()
        matrix = torch.kron(odd, matrix)
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    return signs[:, None] * matrix
