# SPDX-License-Identifier: Apache-2.0
"""Tensors in mapped files: the same values, nothing left in the folder, the same model at the end."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import quanto
from quanto.algorithms import Pipeline
from quanto.algorithms.offload import offload


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_stay_what_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.randn(3, 5, 7).to(dtype).transpose(0, 2)
    kept = offload(x, tmp_path)
    assert kept.dtype == dtype
    assert torch.equal(kept, x)
    kept[0, 0, 0] = 3  # as any other tensor
    assert kept[0, 0, 0] == 3
    assert offload(torch.empty(0, 4), tmp_path).shape == (0, 4)
    if sys.platform != "win32":
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no room is reserved here")
def test_no_room_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        offload(torch.ones(4), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pipeline_makes_the_same_model(tiny: Any, batches: list[torch.Tensor], tmp_path: Path) -> None:
    states = []
    for folder in (None, tmp_path / "new"):
        model = quanto.quantize(tiny(), "int4", group_size=32)
        Pipeline("awq", "gptq", "autoround").run(model, batches, offload_folder=folder)
        states.append(model.state_dict())
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert (tmp_path / "new").is_dir()
