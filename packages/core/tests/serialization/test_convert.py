# SPDX-License-Identifier: Apache-2.0
"""Checkpoints quantized without a model: equal to quantizing the model, and safe against kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import quanto
from quanto.serialization import convert as module
from quanto.serialization.convert import choose, convert, finish
from quanto.serialization.manifest import FILE
from quanto.serialization.sources import Source

Write = Callable[[dict[str, torch.Tensor], Path], None]


class Net(nn.Module):
    """Names as of a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 48)
        self.up_proj = nn.Linear(48, 96)
        self.norm = nn.LayerNorm(96)
        self.down_proj = nn.Linear(96, 48, bias=False)
        self.lm_head = nn.Linear(48, 20, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.down_proj(self.norm(self.up_proj(self.embed_tokens(ids)))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def folder(net: Net, tmp_path: Path, write_floats: Write) -> Path:
    path = tmp_path / "float"
    path.mkdir()
    state = net.state_dict()
    names = list(state)
    write_floats({n: state[n] for n in names[:4]}, path / "model-00001-of-00002.safetensors")
    write_floats({n: state[n] for n in names[4:]}, path / "model-00002-of-00002.safetensors")
    (path / "config.json").write_text("{}")
    (path / "pytorch_model.bin").write_text("not to be copied")
    return path


@pytest.mark.parametrize("shard_size", ["5GB", 3000])
@pytest.mark.parametrize("qtype", ["int8", "int4", "int3", "nf4", "mxfp4", "nvfp4", "float8"])
def test_equal_to_quantizing_the_model(net: Net, folder: Path, tmp_path: Path, qtype: str, shard_size: object) -> None:
    source, out = Source.open(folder), tmp_path / "out"
    finish(out, convert(source, out, choose(source, quanto.Scheme(qtype)), shard_size=shard_size))
    assert len(list(out.glob("*.safetensors"))) > (shard_size == 3000)
    expected = quanto.freeze(quanto.quantized(net, qtype, exclude="lm_head"))
    found = quanto.load(out, Net().eval())
    state = found.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (state[name], value))), name
    ids = torch.arange(20).view(2, 10)
    torch.testing.assert_close(found(ids), expected(ids), rtol=0, atol=0)
    assert quanto.quantization_map(found) == quanto.quantization_map(expected)


def test_what_lies_beside_is_copied_but_no_weights(folder: Path, tmp_path: Path) -> None:
    source, out = Source.open(folder), tmp_path / "out"
    finish(out, convert(source, out, choose(source, quanto.Scheme("int8"))))
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "quanto-00001-of-00001.safetensors", FILE]


def test_nothing_beside_a_lone_file_is_copied(folder: Path, tmp_path: Path) -> None:
    source, out = Source.open(folder / "model-00002-of-00002.safetensors"), tmp_path / "out"
    finish(out, convert(source, out, choose(source, quanto.Scheme("int8"), exclude=["lm_head"])))
    assert sorted(p.name for p in out.iterdir()) == ["quanto-00001-of-00001.safetensors", FILE]
    with pytest.raises(ValueError, match=r"-of-00002.safetensors: nothing to quantize among its weights"):
        choose(source, None)


def test_an_algorithm_that_refuses_leaves_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match="'minmax' needs an integer qtype, not nf4"):
        choose(
            Source.open(folder), quanto.Scheme("int8"), [quanto.Rule("up*", quanto.Scheme("nf4", algorithm="minmax"))]
        )


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_values_that_no_code_stands_for_are_named(tmp_path: Path, write_floats: Write, value: float) -> None:
    weight = torch.zeros(8, 32)
    weight[3, 5] = value
    write_floats({"a.weight": torch.ones(8, 32), "b.weight": weight}, tmp_path / "model.safetensors")
    source = Source.open(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"^b.weight holds NaN or infinity$"):
        convert(source, tmp_path / "out", choose(source, quanto.Scheme("int4")))


def test_rules_and_exclusions_decide(folder: Path) -> None:
    source = Source.open(folder)
    rules = [quanto.Rule("down_proj", "int4"), quanto.Rule("re:lm_.*", "int8"), quanto.Rule("up_proj", None)]
    chosen = choose(source, quanto.Scheme("int2"), rules)
    assert {n: str(w.slot.scheme) for n, w in chosen.items()} == {"down_proj.weight": "int4", "lm_head.weight": "int8"}
    assert list(choose(source, quanto.Scheme("int2"), exclude=["up*"])) == ["down_proj.weight"]
    assert list(choose(source, quanto.Scheme("int2"), layers={"lm_head": "rows"})) == ["lm_head.weight"]
    assert "embed_tokens.weight" in choose(source, None, [quanto.Rule("*", "int8")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": [quanto.Rule("up", "int8")]}, "rule 'up' matches no weight"),
        ({"exclude": ["x"]}, "exclude='x' matches no weight"),
        ({"rules": [quanto.Rule("norm", "int8")]}, r"norm.weight is torch.float32 \[96\]"),
        ({"exclude": ["*"]}, r"nothing to quantize among its weights \(5\)"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(Source.open(folder), quanto.Scheme("int8"), **options)


def test_a_killed_run_goes_on_behind_the_last_whole_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = Source.open(folder), tmp_path / "out"
    chosen = choose(source, quanto.Scheme("int4"))
    whole = tmp_path / "whole"
    finish(whole, convert(source, whole, chosen, shard_size=3000))
    written: list[str] = []
    real = module.write_file

    def failing(path: Path, chunks: object) -> int:
        if path.suffix == ".safetensors":
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(path.name)
        return real(path, chunks)

    monkeypatch.setattr(module, "write_file", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, chosen, shard_size=3000)
    assert not (out / FILE).exists()
    with pytest.raises(ValueError, match="unfinished model of another source or options"):
        convert(source, out, choose(source, quanto.Scheme("int8")), shard_size=3000)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
    monkeypatch.setattr(module, "write_file", real)
    finish(out, convert(source, out, chosen, shard_size=3000))
    assert len(before) == 2
    assert all((out / name).stat().st_mtime_ns == time for name, time in before.items())
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


def test_no_folder_of_another_model_is_written_to(folder: Path, tmp_path: Path) -> None:
    source, out = Source.open(folder), tmp_path / "out"
    chosen = choose(source, quanto.Scheme("int8"))
    with pytest.raises(ValueError, match="where the float model is"):
        convert(source, folder, chosen)
    finish(out, convert(source, out, chosen))
    with pytest.raises(ValueError, match="holds a quantized model already"):
        convert(source, out, chosen)
    (out / FILE).unlink()
    with pytest.raises(ValueError, match="is of another model"):
        convert(source, out, chosen)


def test_one_weight_at_a_time_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor is read once, and none before it is written."""
    source, out = Source.open(folder), tmp_path / "out"
    reads: list[str] = []
    real = Source.read
    monkeypatch.setattr(Source, "read", lambda self, name: (reads.append(name), real(self, name))[1])
    manifest = convert(source, out, choose(source, quanto.Scheme("int4")))
    assert sorted(reads) == sorted(source.infos)
    assert json.loads(manifest.dump())["version"] == 1
