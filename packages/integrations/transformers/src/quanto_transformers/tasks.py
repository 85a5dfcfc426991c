# SPDX-License-Identifier: Apache-2.0
"""Folders whose model is no language model, for `quanto eval`: classifiers, encoders, speech recognition."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quanto.eval.examples import Example
from quanto.eval.tasks import Task

from .sounds import read_sound

__all__ = ["open_task"]

BATCH = 16

Inputs = Callable[[Sequence[Example]], dict[str, Tensor]]


def open_task(folder: Path, architecture: str) -> Task | None:
    """The task of a folder's model, or None if it is none of these.

    Args:
        folder: of a float or quantized model.
        architecture: the class that its config names.

    Raises:
        ValueError: if the model can't be loaded, or what makes its inputs is missing.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, MODEL_MAPPING_NAMES

    if architecture in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.values():
        return _speech(folder, architecture)
    if architecture.endswith(("ForImageClassification", "ForSequenceClassification")):
        return _classifier(folder, architecture)
    if architecture in _names(MODEL_MAPPING_NAMES.values()):
        return _encoder(folder, architecture)
    return None


def _names(values: Any) -> Iterator[str]:
    for value in values:  # some architectures have several classes
        yield from (value,) if isinstance(value, str) else value


def _classifier(folder: Path, architecture: str) -> Task:
    model = _model(folder, architecture)
    inputs = _images(folder) if "Image" in architecture else _texts(folder)
    labels = {str(name): int(number) for name, number in model.config.label2id.items()}
    return Task("classifier", _batched(lambda batch: _call(model, inputs(batch)).logits.float()), labels)


def _encoder(folder: Path, architecture: str) -> Task:
    """Mean over the tokens of a text, or the first one where the folder says so; the first one of an image."""
    model = _model(folder, architecture)
    sees = model.main_input_name == "pixel_values"
    inputs = _images(folder) if sees else _texts(folder)
    first = sees or _pools_first(folder)

    def embed(batch: Sequence[Example]) -> Tensor:
        given = inputs(batch)
        hidden: Tensor = _call(model, given).last_hidden_state.float()
        mask = given.get("attention_mask")
        if first or mask is None:
            return hidden[:, 0] if first else hidden.mean(1)
        weights = mask.to(hidden.device).unsqueeze(-1).float()
        return (hidden * weights).sum(1) / weights.sum(1)

    return Task("encoder", _batched(embed))


def _speech(folder: Path, architecture: str) -> Task:
    from transformers import AutoProcessor

    model = _model(folder, architecture)
    processor = _maker(AutoProcessor, folder)
    rate = int(processor.feature_extractor.sampling_rate)

    def hear(batch: Sequence[Example]) -> list[str]:
        sounds = [read_sound(Path(_field(example, "audio")), rate).numpy() for example in batch]
        given = processor.feature_extractor(sounds, sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
        made = model.generate(**given.to(model.device, model.dtype), do_sample=False)
        return [str(text) for text in processor.batch_decode(made, skip_special_tokens=True)]

    @torch.no_grad()
    def run(examples: Sequence[Example]) -> list[str]:
        return [text for i in range(0, len(examples), BATCH) for text in hear(examples[i : i + BATCH])]

    return Task("speech", run)


def _model(folder: Path, architecture: str) -> Any:
    import transformers

    try:
        return getattr(transformers, architecture).from_pretrained(folder, dtype="auto").eval()
    except (AttributeError, KeyError, ValueError, OSError, ImportError) as error:
        raise ValueError(f"{folder} can't be opened as {architecture}: {error}") from None


def _maker(cls: Any, folder: Path) -> Any:
    """A tokenizer or processor."""
    try:
        return cls.from_pretrained(folder)
    except (KeyError, ValueError, OSError, ImportError, TypeError) as error:
        raise ValueError(f"{folder}: what makes the model's inputs can't be loaded: {error}") from None


def _texts(folder: Path) -> Inputs:
    from transformers import AutoTokenizer

    tokenizer = _maker(AutoTokenizer, folder)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one of a folder without
        raise ValueError(f"{folder} has no tokenizer")
    longest = min(tokenizer.model_max_length, 512)
    return lambda batch: dict(
        tokenizer(
            [_field(example, "text") for example in batch],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
    )


def _images(folder: Path) -> Inputs:
    if find_spec("PIL") is None:
        raise ValueError("reading images needs pillow: pip install pillow")
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = _maker(AutoImageProcessor, folder)

    def inputs(batch: Sequence[Example]) -> dict[str, Tensor]:
        images = []
        for example in batch:
            with Image.open(_field(example, "image")) as image:
                images.append(image.convert("RGB"))
        return dict(processor(images, return_tensors="pt"))

    return inputs


def _field(example: Example, name: str) -> str:
    value = example.get(name)
    if not isinstance(value, str):
        raise ValueError(
            f"this model needs examples with {name!r}; one has {', '.join(map(repr, example)) or 'nothing'}"
        )
    return value


def _call(model: Any, inputs: dict[str, Tensor]) -> Any:
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    return model(**{name: v.to(model.dtype) if v.is_floating_point() else v for name, v in moved.items()})


def _batched(run: Callable[[Sequence[Example]], Tensor]) -> Callable[[Sequence[Example]], Tensor]:
    @torch.no_grad()
    def all_of(examples: Sequence[Example]) -> Tensor:
        return torch.cat([run(examples[i : i + BATCH]).cpu() for i in range(0, len(examples), BATCH)])

    return all_of


def _pools_first(folder: Path) -> bool:
    """What sentence-transformers writes beside its models."""
    path = folder / "1_Pooling" / "config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("pooling_mode_cls_token"))
