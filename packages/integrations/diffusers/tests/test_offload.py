# SPDX-License-Identifier: Apache-2.0
"""Device maps and offloading; on a machine without an accelerator, the CPU stands for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import NAMES, cls, run
from torch import Tensor

import quanto
from quanto.nn import QModule
from quanto_diffusers import QuantoConfig
from quanto_diffusers.offload import teach_group_offloading

CPU = torch.device("cpu")


@pytest.fixture(params=["int8", "int4"])
def model(request: pytest.FixtureRequest, saved: Callable[[str], Path]):
    config = QuantoConfig(request.param)
    return cls("unet").from_pretrained(saved("unet"), quantization_config=config)


@pytest.fixture
def expected(model) -> Tensor:
    return run(model, "unet")


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("disk", [False, True])
def test_group_offload(model, expected: Tensor, kind: str, disk: bool, tmp_path: Path) -> None:
    options = {"offload_to_disk_path": str(tmp_path)} if disk else {}
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    model.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks, **options)
    for _ in range(2):
        assert torch.equal(run(model, "unet"), expected)
    assert not disk or list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_sequential_offload(model, expected: Tensor, where: str, tmp_path: Path) -> None:
    import accelerate

    if where == "cpu":
        accelerate.cpu_offload(model, CPU, offload_buffers=True)
    else:
        accelerate.disk_offload(model, str(tmp_path), CPU)
    for _ in range(2):
        assert torch.equal(run(model, "unet"), expected)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("from_saved", [False, True])
def test_device_maps(weights: str, from_saved: bool, saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Of names and of words, on the fly and from codes; what is on disk is codes as well, scales uncast."""
    config = QuantoConfig(weights, scale_dtype="float32")
    folder = saved("unet")
    model = cls("unet").from_pretrained(folder, quantization_config=config, torch_dtype=torch.bfloat16)
    expected = run(model, "unet", torch.bfloat16)
    if from_saved:
        folder, config = tmp_path / "saved", None
        model.save_pretrained(folder)
    names = [name for name, _ in model.named_children()]
    to_disk = {name: "disk" if name.endswith("_blocks") else "cpu" for name in names}
    for device_map in ("auto", {"": "cpu"}, to_disk):
        again = cls("unet").from_pretrained(
            folder,
            quantization_config=config,
            torch_dtype=torch.bfloat16,
            device_map=device_map,
            offload_folder=str(tmp_path / "disk"),
        )
        assert torch.equal(run(again, "unet", torch.bfloat16), expected)


def test_groups_that_travel_keep_the_layout_of_files() -> None:
    """An arrangement for one device would be none for the other; meta stands for an accelerator."""
    from diffusers.hooks import group_offloading

    assert group_offloading._apply_group_offloading._quanto  # type: ignore[attr-defined]
    library = SimpleNamespace(_apply_group_offloading=lambda module, config: None)
    teach_group_offloading(library)
    wide = cls("flux")(**{**NAMES["flux"][1], "attention_head_dim": 64, "axes_dims_rope": [16, 24, 24]})
    wide.to(torch.bfloat16)
    quanto.freeze(quanto.quantize(wide, "int4"))
    arranged = {m.qtensor().codes.shape for m in wide.modules() if isinstance(m, QModule)}
    assert any(s.layout != "canonical" for m in wide.modules() if isinstance(m, QModule) for s in m._slots.values())
    config = SimpleNamespace(onload_device=torch.device("meta"), offload_device=CPU)
    library._apply_group_offloading(wide, config)
    for module in wide.modules():
        if isinstance(module, QModule):
            module.to("cpu")  # as the group does after a forward pass
            assert all(slot.layout == "canonical" for slot in module._slots.values())
    assert {m.qtensor().codes.shape for m in wide.modules() if isinstance(m, QModule)} == arranged


def test_moving_and_casting(model, expected: Tensor) -> None:
    assert torch.equal(run(model.to("cpu"), "unet"), expected)
    with pytest.raises(ValueError, match="unsupported"):
        model.to(torch.float16)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_what_is_on_disk_is_saved(model, expected: Tensor, kind: str, tmp_path: Path) -> None:
    """diffusers leaves garbage in memory for what it put on disk."""
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    model.enable_group_offload(CPU, CPU, kind, offload_to_disk_path=str(tmp_path / "offloaded"), **blocks)
    for folder in (tmp_path / "before", tmp_path / "after"):
        model.save_pretrained(folder)
        assert torch.equal(run(cls("unet").from_pretrained(folder), "unet"), expected)
        assert torch.equal(run(model, "unet"), expected)
