# SPDX-License-Identifier: Apache-2.0
"""Low-rank correction in a pipeline: less error than without, saved and loaded with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import quanto
from quanto.algorithms import LowRank, Pipeline


@pytest.mark.parametrize("steps", [(), ("gptq",), ("awq",)])
def test_less_error_than_without(
    steps: tuple[str, ...], tiny: Any, batches: list[torch.Tensor], tmp_path: Path
) -> None:
    model, without, found = tiny(), tiny(), tiny()
    for m in (without, found):
        quanto.quantize(m, "int2", group_size=32)
    Pipeline(*steps).run(without, batches)
    Pipeline(*steps, LowRank(4)).run(found, batches)
    assert found.blocks[0].gate.correction_in.shape == (4, 64)
    assert found.head.correction_out.shape == (50, 4)
    with torch.no_grad():
        error, least = (sum((m(b) - model(b)).square().mean() for b in batches) for m in (found, without))
        assert error < 0.8 * least
        quanto.save(found, tmp_path)
        assert torch.equal(quanto.load(tmp_path, tiny())(batches[0]), found(batches[0]))


def test_goes_on_after_a_kill(tiny: Any, batches: list[torch.Tensor], tmp_path: Path) -> None:
    class Killed(LowRank):
        def finish(self, block: Any) -> None:
            if block.name == "blocks.2":
                raise KeyboardInterrupt
            super().finish(block)

    Killed.__name__ = "LowRank"  # the folder must think that it is the same pipeline
    whole, cut = (quanto.quantize(tiny(), "int3", group_size=32) for _ in range(2))
    Pipeline("gptq", LowRank(4)).run(whole, batches)
    with pytest.raises(KeyboardInterrupt):
        Pipeline("gptq", Killed(4)).run(cut, batches, resume=tmp_path / "run")
    again = quanto.quantize(tiny(), "int3", group_size=32)
    Pipeline("gptq", LowRank(4)).run(again, batches, resume=tmp_path / "run")
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, msg=key)


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1 and damping positive, got 0"):
        LowRank(0)
