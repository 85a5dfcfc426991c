# SPDX-License-Identifier: Apache-2.0
"""Sample data from the model itself, where there is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._progress import track
from .stream import calm

__all__ = ["generate_samples"]


@torch.no_grad()
def generate_samples(
    model: nn.Module,
    count: int = 64,
    length: int = 512,
    *,
    batch_size: int = 4,
    parallel: int = 64,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Tensor]:
    """Text that a causal language model draws from its own predictions: calibration without data.

    As in LLM-QAT (Liu et al., 2023, arXiv:2305.17888). The first token of each sequence is drawn from the whole
    vocabulary, each other from what the model predicts, at temperature 1 and without truncation, so that the text is as
    varied as what the model has learned.

    Args:
        model: floating; called with tokens `[n, length]`, it returns logits, or an object that has them as `.logits`.
            One that also has `.past_key_values` is given them back, and so does not read its text again and again.
        count: sequences.
        length: tokens in each.
        batch_size: sequences in each tensor that is returned.
        parallel: sequences that are drawn at a time.
        seed: of the draws, which are made on the CPU.
        progress: whether to show a progress bar; None shows one in a terminal.

    Returns:
        Tokens, int64 `[batch_size, length]` each, where the model is.

    Raises:
        ValueError: if a number is not positive, or the model predicts nothing, or no numbers.
    """
    for name, value in (("count", count), ("length", length), ("batch_size", batch_size), ("parallel", parallel)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    generator = torch.Generator().manual_seed(seed)
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    words = _predict(model, torch.zeros(1, 1, dtype=torch.int64, device=where), None)[0].shape[-1]
    found = []
    caches = getattr(getattr(model, "config", None), "use_cache", None) is not None
    parts = [min(parallel, count - start) for start in range(0, count, parallel)]
    with calm(model):
        for step in track(range(len(parts) * length), "generate", enabled=progress):
            part, position = divmod(step, length)
            if not position:
                tokens = torch.randint(0, words, (parts[part], 1), generator=generator)
                past: Any = None
            else:
                seen = tokens[:, -1:] if past is not None else tokens
                logits, past = _predict(model, seen.to(where), past, caches)
                chances = logits.float().softmax(-1).cpu()
                if not chances.isfinite().all():
                    raise ValueError("the model predicts NaN or infinity")
                tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], 1)
            if position == length - 1:
                found.append(tokens)
    return [batch.to(where) for batch in torch.cat(found).split(batch_size)]


def _predict(model: nn.Module, tokens: Tensor, past: Any, caches: bool = False) -> tuple[Tensor, Any]:
    """Logits of the next token, `[n, words]`, and the model's cache."""
    output = model(tokens, past_key_values=past, use_cache=True) if caches else model(tokens)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or not logits.is_floating_point():
        raise ValueError("the model returns no logits [n, length, words] to draw text from")
    return logits[:, -1], getattr(output, "past_key_values", None) if caches else None
