# SPDX-License-Identifier: Apache-2.0
"""A killed pipeline goes on behind its last finished block, and ends where it would have ended."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import quanto
from quanto.algorithms import GPTQ, Block, Pipeline, Step


class _Kill(Step):
    """Fails at one block, and counts."""

    def __init__(self) -> None:
        pass

    at: ClassVar[str | None] = None
    seen: ClassVar[list[str]] = []

    def apply(self, block: Block) -> None:
        if block.name == _Kill.at:
            raise KeyboardInterrupt
        _Kill.seen.append(block.name)


@pytest.mark.parametrize("qtype", ["int4", "mxfp4", "nvfp4", "float8_e4m3fn"])
def test_goes_on(qtype: str, tiny: Any, batches: list[torch.Tensor], tmp_path: Path) -> None:
    expected = quanto.quantize(tiny(), qtype)
    Pipeline("gptq").run(expected, batches)
    folder = tmp_path / "work"
    _Kill.at, _Kill.seen = "blocks.2", []
    with pytest.raises(KeyboardInterrupt):
        Pipeline(GPTQ(), _Kill()).run(quanto.quantize(tiny(), qtype), batches, resume=folder)
    assert _Kill.seen == ["blocks.0", "blocks.1"]
    _Kill.at, _Kill.seen = None, []
    model = quanto.quantize(tiny(), qtype)
    Pipeline(GPTQ(), _Kill()).run(model, batches, resume=folder)
    assert _Kill.seen == ["blocks.2", ""]
    assert not folder.exists()
    for key, value in expected.state_dict().items():
        got = model.state_dict()[key]
        assert got.dtype == value.dtype
        assert torch.equal(got.reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), key
    assert quanto.quantization_map(model) == quanto.quantization_map(expected)


def test_refuses_what_belongs_to_something_else(tiny: Any, batches: list[torch.Tensor], tmp_path: Path) -> None:
    _Kill.at, _Kill.seen = "blocks.1", []
    with pytest.raises(KeyboardInterrupt):
        Pipeline(_Kill()).run(quanto.quantize(tiny(), "int4"), batches, resume=tmp_path)
    for change, part in (("int8", "model"), ("int4", "data")):
        with pytest.raises(ValueError, match=f"belongs to another {part}; delete it"):
            Pipeline(_Kill()).run(quanto.quantize(tiny(), change), batches[:-1], resume=tmp_path)
    with pytest.raises(ValueError, match="belongs to another pipeline"):
        Pipeline(_Kill(), "gptq").run(quanto.quantize(tiny(), "int4"), batches, resume=tmp_path)
    (tmp_path / "block-blocks.0.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"block-blocks\.0\.pt is damaged"):
        Pipeline(_Kill()).run(quanto.quantize(tiny(), "int4"), batches, resume=tmp_path)
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(ValueError, match=r"pipeline\.json is damaged"):
        Pipeline(_Kill()).run(quanto.quantize(tiny(), "int4"), batches, resume=tmp_path)


def test_files_of_others_stay(tiny: Any, batches: list[torch.Tensor], tmp_path: Path) -> None:
    for name in ("model.pt", "0.pt", "notes.tmp"):
        (tmp_path / name).write_text("mine")
    Pipeline("gptq").run(quanto.quantize(tiny(), "int4"), batches, resume=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.pt", "model.pt", "notes.tmp"]


def test_any_change_of_weights_or_data_is_noticed(tiny: Any, batches: list[torch.Tensor], tmp_path: Path) -> None:
    given = [UserDict(tokens=batch) for batch in batches]
    _Kill.at, _Kill.seen = "blocks.1", []
    with pytest.raises(KeyboardInterrupt):
        Pipeline(_Kill()).run(quanto.quantize(tiny(), "int4"), given, resume=tmp_path)
    other = [UserDict(tokens=batch.flip(0)) for batch in batches]
    with pytest.raises(ValueError, match="belongs to another data"):
        Pipeline(_Kill()).run(quanto.quantize(tiny(), "int4"), other, resume=tmp_path)
    model = tiny()
    with torch.no_grad():
        model.blocks[1].up.weight.copy_(model.blocks[1].up.weight.flip(0))  # of the same sum
    with pytest.raises(ValueError, match="belongs to another model"):
        Pipeline(_Kill()).run(quanto.quantize(model, "int4"), given, resume=tmp_path)
    (tmp_path / "pipeline.json").unlink()
    with pytest.raises(ValueError, match=r"block-blocks\.0\.pt belongs to a run that is not described"):
        Pipeline(_Kill()).run(quanto.quantize(tiny(), "int4"), given, resume=tmp_path)
