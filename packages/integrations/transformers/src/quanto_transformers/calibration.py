# SPDX-License-Identifier: Apache-2.0
"""Static activation scales from sample data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from torch import nn

from quanto import Calibration
from quanto.hosts.calibration import calibrate as run

__all__ = ["calibrate"]


def calibrate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    tokenizer: Any = None,
    batch_size: int = 1,
    max_length: int = 512,
    momentum: float = 0.9,
    progress: bool | None = None,
) -> Calibration:
    """Gives layers with quantized activations static scales, by running sample data through the model.

    Until then each token gets a scale of its own at run time, which costs a pass over it and needs no data. The scales
    are saved with the model.

    Args:
        model: loaded with `QuantoConfig(activations=…)`, of any modality.
        data: a `DataLoader` or any iterable of batches: mappings of the model's arguments, tuples of them, or the first
            one alone; labels are passed on. Or texts: strings, or mappings with a `text`.
        tokenizer: for texts; default: the one beside the model.
        batch_size: texts at a time.
        max_length: tokens of a text that are read.
        momentum: see `quanto.Calibration`.
        progress: whether to show a progress bar; None shows one in a terminal.

    Returns:
        The `quanto.Calibration`, which tells which outputs stay quantized.

    Raises:
        ValueError: if no layer of the model has quantized activations, or there is no data.
    """
    first, batches = _peek(data)
    if isinstance(first, str) or (isinstance(first, Mapping) and isinstance(first.get("text"), str)):
        batches = _tokenized(batches, model, tokenizer, batch_size, max_length)
    total = len(data) if isinstance(data, Sized) else None
    return run(model, batches, momentum=momentum, progress=progress, total=total)


def _peek(data: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    """The first batch, and an iterator over all."""
    iterator = iter(data)
    try:
        first = next(iterator)
    except StopIteration:
        raise ValueError("calibrate was given no data") from None

    def all_of_it() -> Iterator[Any]:
        yield first
        yield from iterator

    return first, all_of_it()


def _tokenized(texts: Iterator[Any], model: Any, tokenizer: Any, size: int, length: int) -> Iterator[Any]:
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    if size > 1 and tokenizer.pad_token is None:
        raise ValueError("batches of texts need a tokenizer with a pad_token; set one, or batch_size=1")
    waiting: list[str] = []
    for text in texts:
        waiting.append(text if isinstance(text, str) else text["text"])
        if len(waiting) == size:
            yield _encode(tokenizer, waiting, length)
            waiting = []
    if waiting:
        yield _encode(tokenizer, waiting, length)


def _encode(tokenizer: Any, texts: list[str], length: int) -> Any:
    return tokenizer(texts, return_tensors="pt", truncation=True, max_length=length, padding=len(texts) > 1)
