# SPDX-License-Identifier: Apache-2.0
"""What every measurement does with a model: feed it, read its logits, and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["call", "check_tokens", "device_of", "evaluating", "logits_of", "move"]


def check_tokens(tokens: Tensor | Sequence[int], block: int) -> Tensor:
    """Cuts tokens into int64 `[blocks, block]`; what remains after the last whole block is left out.

    Raises:
        TypeError: if the tokens are not integers.
        ValueError: if they are no sequence of at least one block, or the block predicts nothing.
    """
    if block < 2:
        raise ValueError(f"a block needs at least 2 tokens to predict one, got block={block}")
    ids = tokens if isinstance(tokens, Tensor) else torch.as_tensor(tokens)
    if ids.ndim != 1:
        hint = "; pass tokens[0]" if ids.ndim == 2 and ids.shape[0] == 1 else ""
        raise ValueError(f"tokens must be one sequence of shape [n], got shape {list(ids.shape)}{hint}")
    if len(ids) < block:
        raise ValueError(f"{len(ids)} tokens are fewer than one block of {block}; give more text or a smaller block")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"tokens must be integers, got {ids.dtype}")
    count = len(ids) // block
    return ids[: count * block].long().view(count, block)


def logits_of(model: Callable[[Tensor], Any], batch: Tensor) -> Tensor:
    """The logits `[batch, tokens, vocabulary]` that a language model gives to tokens `[batch, tokens]`.

    Raises:
        TypeError: if it gives no floating logits.
        ValueError: if they have another shape, or a token is outside of the vocabulary.
    """
    output = model(batch)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model must return logits or an object with .logits, got {type(output).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating-point, got {logits.dtype}")
    if logits.ndim != 3 or logits.shape[:2] != batch.shape:
        raise ValueError(
            f"logits must have shape [{batch.shape[0]}, {batch.shape[1]}, vocabulary], got {list(logits.shape)}"
        )
    vocabulary = logits.shape[-1]
    low, high = batch.min().item(), batch.max().item()
    if low < 0 or high >= vocabulary:
        raise ValueError(f"token {low if low < 0 else high} is outside of the model's vocabulary of {vocabulary}")
    return logits


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """Calls a model with a tensor, a tuple of arguments or a mapping of named ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def move(inputs: Any, device: torch.device) -> Any:
    """Tensors, and those in tuples and mappings, on a device; everything else as it is."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: move(value, device) for name, value in inputs.items()}
    return tuple(move(value, device) for value in inputs) if isinstance(inputs, tuple) else inputs


def device_of(model: object) -> torch.device:
    """Where the first parameter or buffer of a module is; the CPU for anything else."""
    if isinstance(model, nn.Module):
        for tensor in chain(model.parameters(), model.buffers()):
            return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluating(*models: object) -> Iterator[None]:
    """Evaluation mode for a while; every submodule gets its own training flag back."""
    flags: list[tuple[nn.Module, bool]] = []
    for model in models:
        if isinstance(model, nn.Module):
            flags += [(module, module.training) for module in model.modules()]
            model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
