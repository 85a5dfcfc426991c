# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a causal language model over a fixed sequence of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import track

__all__ = ["Perplexity", "perplexity"]


@dataclass(frozen=True)
class Perplexity:
    """A perplexity, and what was measured to get it.

    Attributes:
        value: `exp(nll)`.
        nll: negative log-likelihood in nats per predicted token.
        tokens: how many tokens were predicted.
        blocks: how many blocks they came in.
        convention: how the text was cut. Figures of different conventions cannot be compared.
    """

    value: float
    nll: float
    tokens: int
    blocks: int
    convention: str

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.convention})"


def perplexity(
    model: Callable[[Tensor], Any],
    tokens: Tensor | Sequence[int],
    *,
    block: int = 512,
    batch_size: int = 1,
    progress: bool | None = None,
) -> Perplexity:
    """Measures the perplexity of a causal language model.

    The tokens are cut into blocks without overlap. Each block is seen alone, so its first token is context only, and
    what remains after the last whole block is left out. The result is `exp` of the mean over all predicted tokens; it
    doesn't depend on `batch_size` beyond the rounding of the model itself.

    Args:
        model: takes tokens, int64 `[batch, block]`, and returns floating-point logits `[batch, block, vocabulary]` or
            an object that has them as `.logits`. A module is put into evaluation mode meanwhile, and its tokens are
            moved to the device of its first parameter.
        tokens: integer `[n]` with n >= block.
        block: tokens per block, at least 2.
        batch_size: blocks per call of the model.
        progress: whether to show a progress bar; None shows it on a terminal.

    Returns:
        The perplexity; infinite where the model gives some token probability zero.

    Raises:
        TypeError: if tokens or logits have another dtype.
        ValueError: if there are too few tokens, tokens or logits have another shape, a token is outside of the
            vocabulary, or the logits of a position are not a distribution (NaN, or plus infinity).
    """
    blocks = _blocks(tokens, block)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    device = _device(model)
    # Perplexities of a few thousand tokens differ in the fifth digit between schemes: sum in float64.
    total = torch.zeros((), dtype=torch.float64)
    batches = torch.split(blocks, batch_size)
    with torch.no_grad(), _evaluating(model):
        first = 0
        for batch in track(batches, "perplexity", enabled=progress):
            total += _nll(model, batch.to(device), first)
            first += len(batch)
    predicted = blocks.shape[0] * (block - 1)
    nll = total.item() / predicted
    left_out = len(tokens) - blocks.numel()
    return Perplexity(
        value=math.exp(nll) if nll < 709 else math.inf,  # exp(709.8) overflows float64
        nll=nll,
        tokens=predicted,
        blocks=blocks.shape[0],
        convention=(
            f"{blocks.shape[0]:,} {'block' if blocks.shape[0] == 1 else 'blocks'} of {block} tokens, no overlap, "
            "first token of each block not predicted" + (f", last {left_out:,} tokens left out" if left_out else "")
        ),
    )


def _blocks(tokens: Tensor | Sequence[int], block: int) -> Tensor:
    """Cuts the tokens into int64 `[blocks, block]`."""
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


def _nll(model: Callable[[Tensor], Any], batch: Tensor, first: int) -> Tensor:
    """The summed negative log-likelihood of one batch, float64 on the CPU. `first` numbers its first block."""
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
    predictions, targets = logits[:, :-1], batch[:, 1:].to(logits.device)
    if predictions.dtype != torch.float64:
        predictions = predictions.float()
    each = nn.functional.cross_entropy(predictions.flatten(0, 1), targets.flatten(), reduction="none")
    if each.isnan().any():
        where = int(each.isnan().nonzero()[0])
        block, position = divmod(where, batch.shape[1] - 1)
        raise ValueError(f"the logits of block {first + block}, position {position} hold NaN or infinity")
    return each.double().sum().cpu()


def _device(model: object) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in chain(model.parameters(), model.buffers()):
            return tensor.device
    return torch.device("cpu")


@contextmanager
def _evaluating(model: object) -> Iterator[None]:
    """Evaluation mode for a while; every submodule gets its own training flag back."""
    flags: list[tuple[nn.Module, bool]] = []
    if isinstance(model, nn.Module):
        flags = [(module, module.training) for module in model.modules()]
        model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
