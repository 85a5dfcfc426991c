# SPDX-License-Identifier: Apache-2.0
"""Each kind of model on examples, with answers counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from quanto.eval import Task, measure


def classifier(*classes: int) -> Task:
    """Decides so, whatever it is given."""
    logits = torch.nn.functional.one_hot(torch.tensor(classes), 3).float()
    return Task("classifier", lambda examples: logits[: len(examples)], {"ham": 0, "spam": 1})


def encoder(**vectors: list[float]) -> Task:
    def run(examples: Sequence[dict[str, Any]]) -> torch.Tensor:
        return torch.tensor([vectors[example["text"]] for example in examples])

    return Task("encoder", run)


def test_a_classifier() -> None:
    examples = [{"text": "a", "label": "spam"}, {"text": "b", "label": 2}, {"text": "c", "label": "ham"}]
    found = measure(classifier(1, 0, 0), examples, classifier(1, 2, 2))
    assert found["accuracy"].correct == 2
    assert found["accuracy of the reference"].correct == 2
    assert found["agreement"].correct == 1
    assert set(measure(classifier(1, 0, 0), examples)) == {"accuracy"}
    unlabelled = [{"text": "a"}, {"text": "b"}]
    assert set(measure(classifier(1, 0, 0), unlabelled, classifier(1, 2, 2))) == {"agreement"}


def test_speech() -> None:
    examples = [{"audio": "a", "text": "one two three"}, {"audio": "b", "text": "four"}]
    quantized = Task("speech", lambda _: ["one too three", "four"])
    floating = Task("speech", lambda _: ["one two three", "for"])
    found = measure(quantized, examples, floating)
    assert found["word errors"].value == 0.25
    assert found["word errors of the reference"].value == 0.25
    assert found["word errors against the reference"].value == 0.5


def test_an_encoder() -> None:
    floating = encoder(a=[1.0, 0.0], b=[0.0, 1.0], A=[0.9, 0.1], B=[0.1, 0.9])
    quantized = encoder(a=[1.0, 0.0], b=[0.0, 1.0], A=[0.9, 0.1], B=[0.9, 0.2])
    pairs = [{"query": "a", "document": "A"}, {"query": "b", "document": "B"}]
    found = measure(quantized, pairs, floating)
    assert found["retrieval of the reference"].recall == 1.0
    assert found["retrieval"].recall == 1.0  # B is still nearer to b than A is
    assert found["similarity"].least < 0.4
    texts = [{"text": text} for text in "abAB"]
    assert measure(quantized, texts, floating)["similarity"].count == 4


@pytest.mark.parametrize(
    ("task", "examples", "reference", "message"),
    [
        (classifier(0), [{"text": "a"}], None, "examples without label need the float model"),
        (classifier(0, 0), [{"label": 0}, {"text": "a"}], None, "example 1 has no 'label', and others do"),
        (classifier(0), [{"label": "eggs"}], None, "example 0: label must be a class of the model.*ham, spam"),
        (classifier(0), [{"label": True}], None, "got True"),
        (classifier(0), [{"label": 9}], None, "labels must be from 0 to 2"),
        (classifier(0), [{"label": 0}], encoder(), "kind classifier, the reference of kind encoder"),
        (encoder(a=[1.0]), [{"query": "a"}], None, "example 0 has no 'document'"),
        (encoder(a=[1.0]), [{"query": 1, "document": "a"}], None, "example 0: query must be text, got 1"),
        (Task("speech", lambda _: ["a"]), [{"audio": "a"}], None, "examples without text need the float model"),
    ],
)
def test_what_is_wrong_is_named(task: Task, examples: list[Any], reference: Task | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(task, examples, reference)


def test_kinds_are_known() -> None:
    with pytest.raises(ValueError, match="kind must be one of classifier, encoder, speech, got 'video'"):
        Task("video", lambda examples: examples)
