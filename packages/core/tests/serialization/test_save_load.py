# SPDX-License-Identifier: Apache-2.0
"""What is saved comes back: every bit, every tie, without quantizing again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import quanto
from quanto.quantizers import Quantizer


class Tied(nn.Module):
    """An embedding tied to the head, a linear layer, a convolution and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(48, 96)
        self.layer = nn.Linear(96, 96)
        self.conv = nn.Conv1d(96, 8, 3)
        self.head = nn.Linear(96, 48, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.ones(3))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embed(indices))
        return self.head(x) + self.conv(x.transpose(1, 2)).mean()


INDICES = torch.randint(0, 48, (2, 9), generator=torch.Generator().manual_seed(0))


def _meta(dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        return Tied().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("qtype", sorted(quanto.qtypes))
def test_round_trip_is_bit_equal(
    qtype: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Tied().to(dtype)
    quanto.freeze(quanto.quantize(model, qtype, rules={"embed": qtype, "head": qtype}))
    expected, state = model(INDICES), model.state_dict()
    quanto.save(model, tmp_path, shard_size="20KB")

    def requantized(*args: object) -> None:
        raise AssertionError("loading must not quantize again")

    for float_model in (_meta(dtype), Tied().to(dtype)):
        with monkeypatch.context() as patch:
            patch.setattr(Quantizer, "codes", requantized)
            # the rehearsal runs on the meta device, where nothing is quantized either
            loaded = quanto.load(tmp_path, float_model)
        assert torch.equal(loaded(INDICES), expected)
        assert loaded.embed.weight_packed is loaded.head.weight_packed
        found = loaded.state_dict()
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    again = tmp_path / "again"
    quanto.save(loaded, again)
    first, second = (json.loads((f / "quanto.json").read_text()) for f in (tmp_path, again))
    assert first["modules"] == second["modules"]
    assert (
        first["aliases"]
        == second["aliases"]
        == {"head.weight_packed": "embed.weight_packed"}
        | {k: v for k, v in first["aliases"].items() if k != "head.weight_packed"}
    )


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    model = quanto.freeze(quanto.quantize(Tied(), "int8", include=["embed", "head", "layer"]))
    quanto.save(model, tmp_path)
    data = json.loads((tmp_path / "quanto.json").read_text())
    assert data["aliases"] == {
        "head.weight_packed": "embed.weight_packed",
        "head.weight_scale": "embed.weight_scale",
    }
    size = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    assert size < sum(p.nbytes for p in model.parameters()) + model.offset.nbytes + 4096


def test_trainable_modules_stay_trainable(tmp_path: Path) -> None:
    model = quanto.quantize(Tied(), "int4")
    quanto.save(model, tmp_path)
    loaded = quanto.load(tmp_path, Tied())
    assert not loaded.layer.frozen
    assert loaded.layer.weight.requires_grad
    assert torch.equal(loaded(INDICES), model(INDICES))
    loaded(INDICES).sum().backward()
    assert loaded.layer.weight.grad is not None


def test_static_activations_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    quanto.quantize(model, "int8", "int8")
    batch = torch.randn(16, 32)
    with quanto.Calibration() as calibration:
        model(batch)
    quanto.freeze(model)
    quanto.save(model, tmp_path)
    float_model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    loaded = quanto.load(tmp_path, float_model)
    assert calibration.kept == 1
    assert [n for n, b in loaded.named_buffers() if n.endswith("output_scale")] == ["0.output_scale"]
    assert torch.equal(loaded(batch), model(batch))


def test_raw_expert_parameters_come_back(tmp_path: Path) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 32, 64))
            self.down = nn.Parameter(torch.randn(3, 32, 64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(nn.functional.linear(x, self.up[e]) @ self.down[e] for e in range(3))  # type: ignore[return-value]

    model = nn.Sequential(Experts())
    quanto.quantize(model, rules=[quanto.Rule("0", quanto.Scheme("int4", group_size=32), ("up", "down.T"))])
    quanto.freeze(model)
    quanto.save(model, tmp_path)
    loaded = quanto.load(tmp_path, nn.Sequential(Experts()))
    x = torch.randn(5, 64)
    assert torch.equal(loaded(x), model(x))


def test_errors_of_saving(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no quantized module"):
        quanto.save(nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match="meta device"):
        quanto.save(quanto.freeze(quanto.quantize(nn.Linear(8, 8, device="meta"), "int8")), tmp_path)
    model = quanto.freeze(quanto.quantize(nn.Linear(8, 8), "int8"))
    for size in ("many", "-1GB", 0):
        with pytest.raises(ValueError, match="shard_size"):
            quanto.save(model, tmp_path, shard_size=size)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [None, 1.5, "big", "nanGB", 0])
def test_a_shard_size_is_checked(size: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_size must be"):
        quanto.save(quanto.quantize(Tied(), "int8"), tmp_path / "new", shard_size=size)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


class Extra(Tied):
    """Has state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_what_a_file_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'_extra_state' is a dict; only tensors can be saved"):
        quanto.save(quanto.quantize(Extra(), "int8"), tmp_path / "new")
    odd = quanto.quantize(Tied(), "int8")
    odd.register_buffer("half\ud83d", torch.ones(1))
    with pytest.raises(ValueError, match="cannot be stored: half of a surrogate pair"):
        quanto.save(odd, tmp_path / "new")
    assert not (tmp_path / "new").exists()
