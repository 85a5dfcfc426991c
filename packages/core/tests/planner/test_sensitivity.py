# SPDX-License-Identifier: Apache-2.0
"""What is measured, what is remembered, and when not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import quanto
from quanto.planner import sensitivity
from quanto.planner import sensitivity as measured


def test_without_data_it_is_noise_over_signal(task) -> None:
    found = sensitivity(task.model, None, ["int8", "int4"])
    model = quanto.freeze(quanto.quantized(task.model, "int4"))
    signals = quanto.eval.sqnr(model, task.model).layers
    assert [row[1] for row in found.losses] == pytest.approx([s.error**2 for s in signals], rel=1e-4)
    assert [row[1] / n for row, n in zip(found.bits, found.weights, strict=True)] == pytest.approx(
        [s.bits for s in signals]
    )


def test_a_cache_is_used_extended_and_bound_to_model_and_data(task, tmp_path: Path) -> None:
    cache, batches = tmp_path / "cache.json", [task.batch(16, 0)[0]]
    first = measured(task.model, batches, ["int8", "int4"], cache=cache)
    text = cache.read_text()
    broken = json.loads(text)
    broken["losses"]["0"] = dict.fromkeys(broken["losses"]["0"], 7.0)
    cache.write_text(json.dumps(broken))
    assert measured(task.model, batches, ["int4"], cache=cache).losses[0] == (7.0,)  # read, not measured
    assert measured(task.model, [batches[0] + 1], ["int4"], cache=cache).losses[0] != (7.0,)  # other data
    other = copy.deepcopy(task.model)
    with torch.no_grad():
        next(p for p in other.parameters() if p.ndim == 1).add_(1)  # a bias, which is not planned
    assert measured(other, batches, ["int4"], cache=cache).losses[0] != (7.0,)
    cache.write_text(text)
    more = measured(task.model, batches, ["int4", "int2"], cache=cache)
    assert more.losses[0][0] == first.losses[0][1]
    assert len(json.loads(cache.read_text())["losses"]["0"]) == 3


def test_a_file_that_is_no_cache_is_not_overwritten(task, tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"notes\.json is no cache"):
        sensitivity(task.model, None, ["int8"], cache=path)
    assert path.read_text() == "{}"


def test_shared_weights_and_excluded_layers_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert sensitivity(model, None, ["int8"]).layers == ("2",)
    with pytest.raises(ValueError, match="no layer"):
        sensitivity(model, None, ["int8"], exclude="2")


def test_what_cannot_be_planned_is_named(task) -> None:
    with pytest.raises(ValueError, match="quantized already"):
        sensitivity(quanto.quantized(task.model, "int8"), None, ["int8"])
    with pytest.raises(ValueError, match="at least one scheme"):
        sensitivity(task.model, None, [])
    with pytest.raises(ValueError, match="at least one batch"):
        sensitivity(task.model, [], ["int8"])


def test_json_ready(task) -> None:
    found = sensitivity(task.model, None, ["int8", quanto.Scheme("int4", group_size=32)])
    data = json.loads(json.dumps(found.to_dict()))
    assert data["candidates"][1] == {"weights": "int4", "group_size": 32}
    assert data["layers"]["8"]["weights"] == 8 * 64
    assert torch.tensor(data["layers"]["8"]["losses"]).isfinite().all()


class _Unused(nn.Module):
    """The data is never sent to one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.never = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.used(x) if len(x) else self.never(x))
        return y


def test_layers_that_the_data_does_not_reach_count_as_average() -> None:
    torch.manual_seed(0)
    model, batches = _Unused(), [torch.randn(64, 32)]
    with pytest.warns(UserWarning, match=r"does not reach 1 layers \(never\)"):
        found = sensitivity(model, batches, ["int8", "int4", "int2"])
    used, never, head = found.losses
    assert list(never) == sorted(never)
    for losses in zip(used, never, head, strict=True):
        assert min(losses[0], losses[2]) / 2 < losses[1] < 2 * max(losses[0], losses[2])
    with pytest.raises(ValueError, match="data reaches none of the layers"):
        sensitivity(model, batches, ["int4"], objective=lambda output, _: (torch.zeros(1, requires_grad=True).sum(), 1))
