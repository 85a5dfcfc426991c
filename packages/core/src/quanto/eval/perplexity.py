# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a causal language model over a fixed sequence of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import track
from .running import check_tokens, device_of, evaluating, logits_of

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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


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
    blocks = check_tokens(tokens, block)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    device = device_of(model)
    # Perplexities of a few thousand tokens differ in the fifth digit between schemes: sum in float64.
    total = torch.zeros((), dtype=torch.float64)
    batches = torch.split(blocks, batch_size)
    with torch.no_grad(), evaluating(model):
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


def _nll(model: Callable[[Tensor], Any], batch: Tensor, first: int) -> Tensor:
    """The summed negative log-likelihood of one batch, float64 on the CPU. `first` numbers its first block."""
    logits = logits_of(model, batch)
    predictions, targets = logits[:, :-1], batch[:, 1:].to(logits.device)
    if predictions.dtype != torch.float64:
        predictions = predictions.float()
    each = nn.functional.cross_entropy(predictions.flatten(0, 1), targets.flatten(), reduction="none")
    if each.isnan().any():
        where = int(each.isnan().nonzero()[0])
        block, position = divmod(where, batch.shape[1] - 1)
        raise ValueError(f"the logits of block {first + block}, position {position} hold NaN or infinity")
    return each.double().sum().cpu()
