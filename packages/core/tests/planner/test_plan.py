# SPDX-License-Identifier: Apache-2.0
"""Plans keep their budgets, and beat uniform schemes of the same size."""

from __future__ import annotations

import copy
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import quanto
from quanto.cli.options import read_rules
from quanto.eval import accuracy

CANDIDATES = [quanto.Scheme(q, group_size=32) for q in ("int2", "int3", "int4", "int8")]


def divergence(model: nn.Module, reference: nn.Module, x: torch.Tensor) -> float:
    p, q = (m(x).log_softmax(-1) for m in (reference, model))
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.fixture(scope="module")
def batches(task):
    return [task.batch(256, seed)[0] for seed in range(200, 208)]


@pytest.mark.parametrize("uniform", [1, 2])
def test_a_plan_of_equal_size_beats_the_uniform_scheme(task, batches, uniform: int) -> None:
    found = quanto.plan(task.model, batches, bits=100, candidates=CANDIDATES)
    scheme, bits, expected = found.uniform()[uniform]
    planned = quanto.plan(task.model, batches, bits=bits, candidates=CANDIDATES)
    assert planned.bits <= bits
    assert planned.loss < expected
    held_out = task.batch(4096, 999)[0]
    one = quanto.freeze(quanto.quantized(task.model, rules=planned.rules))
    other = quanto.freeze(quanto.quantized(task.model, scheme=scheme))
    assert divergence(one, task.model, held_out) < divergence(other, task.model, held_out)


def test_what_is_planned_is_what_is_stored(task, batches) -> None:
    planned = quanto.plan(task.model, batches, bits=5, candidates=CANDIDATES)
    model = quanto.freeze(quanto.quantized(task.model, rules=planned.rules))
    stored = quanto.eval.sqnr(model, task.model).layers
    weights = [layer.shape[0] * layer.shape[1] for layer in stored]
    assert sum(layer.bits * n for layer, n in zip(stored, weights, strict=True)) / sum(weights) == pytest.approx(
        planned.bits
    )
    assert accuracy(model, [task.batch(500, 5)]).value > 0.3


def test_budgets_of_size_loss_and_time(task, batches) -> None:
    weights = 4 * 64 * 128 + 64 * 8
    planned = quanto.plan(task.model, batches, size=weights, candidates=CANDIDATES)
    assert 7 < planned.bits <= 8  # one layer's next candidate would be too much
    cheap = quanto.plan(task.model, batches, loss=0.05, candidates=CANDIDATES)
    assert cheap.loss <= 0.05
    assert cheap.bits < 10
    timed = quanto.plan(task.model, batches, seconds=1.0, candidates=CANDIDATES)
    assert timed.loss == pytest.approx(min(loss for _, _, loss in timed.uniform()), rel=0.2)


def test_another_budget_measures_nothing(task, batches) -> None:
    first = quanto.plan(task.model, batches, bits=100, candidates=CANDIDATES)
    again, asked = first.again(bits=5), quanto.plan(task.model, batches, bits=5, candidates=CANDIDATES)
    assert (again.choices, again.budget) == (asked.choices, asked.budget)
    with pytest.raises(ValueError, match="a plan for time"):
        quanto.plan(task.model, None, seconds=1.0, candidates=["int8"]).again(bits=5)


def test_everything_affordable_gives_the_best(task, batches) -> None:
    best = quanto.plan(task.model, batches, bits=100, candidates=CANDIDATES)
    assert all(rule.scheme.weights == "int8" for rule in best.rules)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "got none"),
        ({"bits": 4, "size": 5}, "got bits, size"),
        ({"bits": 1.0}, r"at most 1 bits per weight is below the smallest candidates: \d"),
        ({"size": 10}, "at most 10 bytes is below"),
        ({"loss": 0.0}, "least loss"),
        ({"seconds": 0.0}, "cheapest choices cost"),
    ],
)
def test_impossible_budgets(task, batches, budget: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quanto.plan(task.model, batches, candidates=CANDIDATES, **budget)


def test_table_toml_and_json(task, batches) -> None:
    planned = quanto.plan(task.model, batches, bits=5, candidates=CANDIDATES)
    text = str(planned)
    assert "this plan: at most 5 bits per weight" in text
    assert "nats of divergence" in text
    data = json.loads(json.dumps(planned.to_dict()))
    assert list(data["rules"]) == ["0", "2", "4", "6", "8"]
    assert data["bits"] == planned.bits
    toml = planned.to_toml()
    assert toml.count("[[rules]]") == 5
    assert 'pattern = "2"\nweights = "int' in toml


def test_picture(task, batches, tmp_path: Path) -> None:
    planned = quanto.plan(task.model, batches, bits=5, candidates=CANDIDATES)
    if find_spec("matplotlib") is None:
        with pytest.raises(ValueError, match="matplotlib"):
            planned.draw(tmp_path / "a.png")
        return
    planned.draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_any_characters(tmp_path: Path) -> None:
    model = nn.Sequential()
    for name in ("a[0]", 'b"c', "d\\e", "f*"):
        model.add_module(name, nn.Linear(32, 32))
    planned = quanto.plan(model, bits=5.0)
    for text, suffix in ((planned.to_json(), ".json"), (planned.to_toml(), ".toml")):
        if suffix == ".toml" and sys.version_info < (3, 11):
            continue
        path = tmp_path / f"rules{suffix}"
        path.write_text(text)
        rules = read_rules(path)
        assert rules == planned.rules
        quanto.quantize(copy.deepcopy(model), rules=rules)
        assert [next(r.scheme for r in rules if r.matches(n, m)) for n, m in model.named_children()] == [
            planned.sensitivity.candidates[c] for c in planned.choices
        ]
