# SPDX-License-Identifier: Apache-2.0
"""Whether an encoder still puts texts or images where the float one did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Retrieval", "Similarity", "retrieval", "similarity", "spearman"]


@dataclass(frozen=True)
class Similarity:
    """How alike the embeddings of two encoders are.

    Attributes:
        cosine: mean cosine between the two embeddings of an input.
        least: the smallest such cosine.
        spearman: mean over the inputs of the rank correlation of their cosines to all others.
        count: inputs.
        convention: in words.
    """

    cosine: float
    least: float
    spearman: float
    count: int
    convention: str = "cosine to the reference's embedding; Spearman of each input's cosines to all others"

    def __str__(self) -> str:
        return f"cosine {self.cosine:.5f}, least {self.least:.5f}, Spearman {self.spearman:.5f} ({self.convention})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Retrieval:
    """How well queries find their documents.

    Attributes:
        recall: share of queries whose document is the nearest.
        mrr: mean of 1 / rank of the document, 0 where it is not among the nearest 10.
        count: queries.
        convention: in words.
    """

    recall: float
    mrr: float
    count: int
    convention: str = "query i belongs to document i, by cosine: recall@1 and MRR@10"

    def __str__(self) -> str:
        return f"recall@1 {self.recall:.4f}, MRR@10 {self.mrr:.4f} ({self.convention}, {self.count:,} pairs)"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def similarity(embeddings: Tensor, reference: Tensor) -> Similarity:
    """Compares the embeddings of the same inputs by two encoders.

    Args:
        embeddings: floating `[n, d]`, n at least 3.
        reference: floating `[n, e]`; where e differs from d only the ranks can be compared, and the cosines are NaN.

    Raises:
        ValueError: if the shapes do not fit, or a value is not finite.
    """
    one, other = _unit(embeddings, "embeddings"), _unit(reference, "reference")
    if len(one) != len(other) or len(one) < 3:
        raise ValueError(f"embeddings and reference must be of the same n >= 3 inputs, got {len(one)} and {len(other)}")
    rows = ~torch.eye(len(one), dtype=torch.bool)
    mine, its = ((x @ x.T)[rows].view(len(x), -1) for x in (one, other))
    cosines = (one * other).sum(-1) if one.shape == other.shape else one.new_full((len(one),), torch.nan)
    return Similarity(cosines.mean().item(), cosines.min().item(), spearman(mine, its).mean().item(), len(one))


def retrieval(queries: Tensor, documents: Tensor) -> Retrieval:
    """Measures how often the nearest document of query i is document i.

    Args:
        queries, documents: floating `[n, d]`.

    Raises:
        ValueError: if the shapes differ, or a value is not finite.
    """
    one, other = _unit(queries, "queries"), _unit(documents, "documents")
    if one.shape != other.shape:
        raise ValueError(f"queries and documents must have one shape, got {list(one.shape)} and {list(other.shape)}")
    scores = one @ other.T
    own = scores.diagonal().unsqueeze(-1)
    # documents that score the same count as nearer: an encoder that maps all to one point finds nothing
    ranks = (scores >= own).sum(-1).double()
    return Retrieval(
        (ranks == 1).double().mean().item(), torch.where(ranks <= 10, 1 / ranks, 0.0).mean().item(), len(one)
    )


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation along the last dimension; equal values share the mean of their ranks.

    Args:
        a, b: `[…, n]`, n at least 2.

    Returns:
        float64 `[…]`, NaN where all values of a row are equal.
    """
    one, other = (_ranks(x.double()) for x in (a, b))
    one, other = (x - x.mean(-1, keepdim=True) for x in (one, other))
    return (one * other).sum(-1) / (one.square().sum(-1) * other.square().sum(-1)).sqrt()


def _ranks(x: Tensor) -> Tensor:
    order = x.sort(-1).values.contiguous()
    low = torch.searchsorted(order, x.contiguous(), right=False)
    return (low + torch.searchsorted(order, x.contiguous(), right=True)).double() / 2


def _unit(x: Tensor, name: str) -> Tensor:
    if x.ndim != 2 or not x.is_floating_point() or not len(x):
        raise ValueError(f"{name} must be floating [n, d], got {x.dtype} {list(x.shape)}")
    x = x.detach().double().cpu()
    if not x.isfinite().all():
        raise ValueError(f"{name} hold NaN or infinity")
    return torch.nn.functional.normalize(x, dim=-1)
