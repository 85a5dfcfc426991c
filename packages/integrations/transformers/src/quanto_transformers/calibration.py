# SPDX-License-Identifier: Apache-2.0
"""Static activation scales from sample data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quanto import Calibration
from quanto._progress import track
from quanto.nn import QModule

__all__ = ["calibrate"]


@torch.no_grad()
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
    layers = [m for m in model.modules() if isinstance(m, QModule) and m.scheme.activations is not None]
    if not any(m.quantizes_input and m.scheme.dynamic is not True for m in layers):
        raise ValueError(
            "no layer has activations to calibrate: load the model with QuantoConfig(activations='int8'), "
            "and without dynamic=True"
        )
    first, batches = _peek(data)
    if isinstance(first, str) or (isinstance(first, Mapping) and isinstance(first.get("text"), str)):
        batches = _tokenized(batches, model, tokenizer, batch_size, max_length)
    total = len(data) if hasattr(data, "__len__") else None  # type: ignore[arg-type]
    training = model.training
    model.eval()
    try:
        with _only_norms_hand_over(layers), Calibration(momentum) as calibration:
            for batch in track(batches, "calibrate", total=total, enabled=progress):
                _run(model, batch)
    finally:
        model.train(training)
    return calibration


@contextmanager
def _only_norms_hand_over(layers: list[QModule]) -> Iterator[None]:
    """Within, only norms quantize their outputs.

    A linear layer's output goes to attention, an activation function or a residual sum, which decode it; some models
    add to it in place, which a quantized tensor refuses.
    """
    others = [m for m in layers if m._slots]
    for module in others:
        module.__dict__["quantizes_output"] = False
    try:
        yield
    finally:
        for module in others:
            del module.__dict__["quantizes_output"]


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


def _run(model: Any, batch: Any) -> None:
    device = getattr(model, "device", None)

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) and device is not None else value

    if isinstance(batch, Mapping):
        model(**{key: moved(value) for key, value in batch.items()})
    elif isinstance(batch, (tuple, list)):
        model(*map(moved, batch))
    else:
        model(moved(batch))
