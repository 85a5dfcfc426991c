# SPDX-License-Identifier: Apache-2.0
"""Models that are no language models, measured on examples: classifiers, speech recognition, encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .accuracy import accuracy, agreement
from .embeddings import retrieval, similarity
from .examples import Example
from .word_errors import word_error_rate

__all__ = ["KINDS", "Task", "measure"]

KINDS = ("classifier", "encoder", "speech")


@dataclass(frozen=True)
class Task:
    """A model together with what makes its inputs of examples.

    Attributes:
        kind: one of `KINDS`.
        run: from examples to logits, floating `[n, classes]`, of a classifier; embeddings, floating `[n, d]`, of an
            encoder; texts of a model of speech. Reads the fields `text`, `image` or `audio`.
        labels: numbers of a classifier's classes, by name.
    """

    kind: str
    run: Callable[[Sequence[Example]], Any]
    labels: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")


def measure(task: Task, examples: Sequence[Example], reference: Task | None = None) -> dict[str, Any]:
    """Measures what the examples allow: more where they say what is right, and where there is a float model.

    Args:
        task: the quantized model's.
        examples: for a classifier with `label`, a number or a name; for speech with `text`; for an encoder pairs of
            `query` and `document`, or `text` or `image` where there is a reference.
        reference: the float model's, of the same kind.

    Returns:
        Measurements by name; each prints its convention and has `to_dict`. Names that end in `of the reference` are the
        float model's own.

    Raises:
        ValueError: naming the example that lacks a field or has a wrong one, or if nothing can be measured.
    """
    if reference is not None and reference.kind != task.kind:
        raise ValueError(f"the model is of kind {task.kind}, the reference of kind {reference.kind}")
    found = _MEASURES[task.kind](task, examples, reference)
    if not found:
        need = {"classifier": "label", "encoder": "query and document", "speech": "text"}[task.kind]
        raise ValueError(f"examples without {need} need the float model beside to compare with")
    return found


def _classifier(task: Task, examples: Sequence[Example], reference: Task | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    logits = task.run(examples)
    other = None if reference is None else reference.run(examples)
    index = torch.arange(len(examples))
    if _all_have(examples, "label"):
        labels = torch.tensor([_label(task, i, example["label"]) for i, example in enumerate(examples)])
        found["accuracy"] = accuracy(lambda i: logits[i], [(index, labels)], progress=False)
        if other is not None:
            found["accuracy of the reference"] = accuracy(lambda i: other[i], [(index, labels)], progress=False)
    if other is not None:
        found["agreement"] = agreement(lambda i: logits[i], lambda i: other[i], [index], progress=False)
    return found


def _speech(task: Task, examples: Sequence[Example], reference: Task | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    heard = task.run(examples)
    other = None if reference is None else reference.run(examples)
    if _all_have(examples, "text"):
        said = [_text(i, example["text"]) for i, example in enumerate(examples)]
        found["word errors"] = word_error_rate(said, heard)
        if other is not None:
            found["word errors of the reference"] = word_error_rate(said, other)
    if other is not None:
        found["word errors against the reference"] = word_error_rate(other, heard)
    return found


def _encoder(task: Task, examples: Sequence[Example], reference: Task | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if not _all_have(examples, "query"):
        if reference is not None:
            found["similarity"] = similarity(task.run(examples), reference.run(examples))
        return found
    sides = [[{"text": _field(i, e, name)} for i, e in enumerate(examples)] for name in ("query", "document")]
    mine = [task.run(side) for side in sides]
    found["retrieval"] = retrieval(*mine)
    if reference is not None:
        its: list[Tensor] = [reference.run(side) for side in sides]
        found["retrieval of the reference"] = retrieval(*its)
        found["similarity"] = similarity(torch.cat(mine), torch.cat(its))
    return found


_MEASURES = {"classifier": _classifier, "encoder": _encoder, "speech": _speech}


def _all_have(examples: Sequence[Example], name: str) -> bool:
    """Whether the examples have a field; not some of them only."""
    having = [name in example for example in examples]
    if any(having) and not all(having):
        raise ValueError(f"example {having.index(False)} has no {name!r}, and others do")
    return all(having)


def _field(index: int, example: Example, name: str) -> str:
    if name not in example:
        raise ValueError(f"example {index} has no {name!r}")
    return _text(index, example[name], name)


def _text(index: int, value: Any, name: str = "text") -> str:
    if not isinstance(value, str):
        raise ValueError(f"example {index}: {name} must be text, got {value!r:.80}")
    return value


def _label(task: Task, index: int, value: Any) -> int:
    if isinstance(value, str) and value in task.labels:
        return task.labels[value]
    if isinstance(value, bool) or not isinstance(value, int):
        known = f", a number or one of {', '.join(list(task.labels)[:5])} …" if task.labels else ", a number"
        raise ValueError(f"example {index}: label must be a class of the model{known}; got {value!r:.80}")
    return value
