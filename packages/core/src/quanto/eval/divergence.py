# SPDX-License-Identifier: Apache-2.0
"""How far the predictions of a quantized language model are from those of the float one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .._progress import track
from .running import check_tokens, device_of, evaluating, logits_of

__all__ = ["Divergence", "divergence"]


@dataclass(frozen=True)
class Divergence:
    """Kullback-Leibler divergence from the float model, in nats, over all predicted positions.

    Attributes:
        mean, median, p99, max: of the positions.
        agreement: share of positions at which both find the same token most likely.
        rise: rise of the mean negative log-likelihood of the text over the float model's: the difference of the two
            logarithms of perplexity.
        tokens: positions compared.
        convention: what was compared. Figures of different conventions cannot be compared.
    """

    mean: float
    median: float
    p99: float
    max: float
    agreement: float
    rise: float
    tokens: int
    convention: str

    def __str__(self) -> str:
        return (
            f"KL {self.mean:.4g} nats, same top token {self.agreement:.2%}, log-perplexity {self.rise:+.5f} "
            f"({self.convention})"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@torch.no_grad()
def divergence(
    model: Callable[[Tensor], Any],
    reference: Callable[[Tensor], Any],
    tokens: Tensor | Sequence[int],
    *,
    block: int = 512,
    batch_size: int = 1,
    progress: bool | None = None,
) -> Divergence:
    """Compares the next-token distributions of two models: `KL(reference || model)`.

    The tokens are cut as `perplexity` cuts them, and the same positions count. Both models are run batch by batch, so
    that no logits are kept. Where the text itself is easy or hard cancels out, which perplexity cannot offer: the mean
    divergence tells schemes apart on a tenth of the text.

    Args:
        model: quantized; see `perplexity`.
        reference: the float model, of the same vocabulary.
        tokens: integer `[n]` with n >= block.
        block: tokens per block, at least 2.
        batch_size: blocks per call.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        TypeError, ValueError: as `perplexity`; or if the vocabularies differ, or logits of either hold NaN.
    """
    blocks = check_tokens(tokens, block)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    here, there = device_of(model), device_of(reference)
    each: list[Tensor] = []
    same, rise = 0, 0.0
    with evaluating(model, reference):
        for batch in track(torch.split(blocks, batch_size), "divergence", enabled=progress):
            p = _log_probabilities(reference, batch.to(there)).to(here)
            q = _log_probabilities(model, batch.to(here))
            if p.shape != q.shape:
                raise ValueError(f"model and reference have vocabularies of {q.shape[-1]} and {p.shape[-1]}")
            for what, logs in (("reference", p), ("model", q)):
                if logs.isnan().any():
                    raise ValueError(f"the logits of the {what} hold NaN")
            # where p is 0 the product is 0, whatever the logarithm
            each.append(torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1).clamp_min(0).flatten().cpu())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            targets = batch[:, 1:].to(here).unsqueeze(-1)
            rise += float((p.gather(-1, targets) - q.gather(-1, targets)).double().sum())
    found = torch.cat(each).double()
    return Divergence(
        mean=found.mean().item(),
        median=found.median().item(),
        p99=found.quantile(0.99).item() if len(found) < 2**24 else found.sort().values[int(0.99 * len(found))].item(),
        max=found.max().item(),
        agreement=same / len(found),
        rise=rise / len(found),
        tokens=len(found),
        convention=f"KL(float || quantized) in nats at each of {len(found):,} positions, {len(blocks):,} blocks of "
        f"{block} tokens, no overlap",
    )


def _log_probabilities(model: Callable[[Tensor], Any], batch: Tensor) -> Tensor:
    return logits_of(model, batch)[:, :-1].float().log_softmax(-1)
