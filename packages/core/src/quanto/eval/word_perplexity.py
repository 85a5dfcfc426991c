# SPDX-License-Identifier: Apache-2.0
"""Perplexity per word: every token of every document is predicted, and words are counted instead of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import track
from .perplexity import Perplexity
from .running import device_of, evaluating, logits_of

__all__ = ["word_perplexity"]


def word_perplexity(
    model: Callable[[Tensor], Any],
    documents: Sequence[tuple[Sequence[int] | Tensor, int]],
    *,
    prefix: int,
    window: int = 2048,
    progress: bool | None = None,
) -> Perplexity:
    r"""Measures perplexity per word, as the task `wikitext` of the lm-evaluation-harness does.

    A document is preceded by one `prefix` token and each of its tokens is predicted once. Windows follow one another
    with one token of context; the last one reaches back to full length. The result is `exp` of the negative
    log-likelihood of all documents over their words, so it can be compared across tokenizers and not with figures per
    token.

    Args:
        model: as for `perplexity`.
        documents: for each its tokens, without special ones, and its number of words: `len(re.split(r"\s+", text))`
            is how the harness counts.
        prefix: the token before a document: that of the beginning of text, or else of its end.
        window: tokens that the model sees at once.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if there is no document, one has no token or no word, or the logits hold NaN.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 token, got {window}")
    if not documents:
        raise ValueError("documents must hold at least one")
    total, tokens, words, windows = 0.0, 0, 0, 0
    device = device_of(model)
    with torch.no_grad(), evaluating(model):
        for index, (document, count) in enumerate(track(documents, "word perplexity", enabled=progress)):
            ids = torch.as_tensor(document).long().flatten()
            if not len(ids) or count < 1:
                raise ValueError(f"document {index} has {len(ids)} tokens and {count} words; each needs some of both")
            for seen, predicted in _windows(ids, prefix, window):
                logits = logits_of(model, seen.unsqueeze(0).to(device))[0, -len(predicted) :].float()
                each = nn.functional.cross_entropy(logits, predicted.to(logits.device), reduction="none").double()
                if each.isnan().any():
                    raise ValueError(f"the logits of document {index} hold NaN or infinity")
                total += each.sum().item()
                windows += 1
            tokens += len(ids)
            words += count
    nll = total / words
    documents_text = "1 document" if len(documents) == 1 else f"{len(documents):,} documents"
    return Perplexity(
        value=math.exp(nll) if nll < 709 else math.inf,
        nll=nll,
        tokens=tokens,
        blocks=windows,
        convention=f"per word: {documents_text} of {words:,} words, every one of {tokens:,} tokens predicted, "
        f"windows of {window}",
    )


def _windows(ids: Tensor, prefix: int, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the model sees, and the last tokens it predicts of it."""
    whole = torch.cat([torch.tensor([prefix], dtype=ids.dtype, device=ids.device), ids])
    for start in range(0, len(ids), window):
        end = min(start + window, len(ids))
        first = start if end - start == window else max(0, end - window)
        yield whole[first:end], ids[start:end]
