# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: its kernels in a Flux, offloading with streams, Inductor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build, cls, inputs
from torch import Tensor

import quanto
from quanto.kernels import kernels
from quanto.nn import QModule
from quanto_diffusers import QuantoConfig, calibrate

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
SIZES = {
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "axes_dims_rope": [16, 24, 24],
    "joint_attention_dim": 256,
    "num_layers": 2,
    "num_single_layers": 2,
}
SCHEMES = {
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4", "group_size": 64},
    "float8": {"weights": "float8"},
    "nf4": {"weights": "nf4", "group_size": 64},
    "dynamic": {"weights": "int8", "activations": "int8"},
}
EVERY = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float Flux, wide enough for the kernels."""
    path: Path = tmp_path_factory.mktemp("flux")
    build("flux", **SIZES).save_pretrained(path)
    return path


@pytest.fixture
def load(folder: Path) -> Callable[..., Any]:
    def loaded(scheme: str, path: Path = folder, **options: Any) -> Any:
        config = QuantoConfig(**SCHEMES[scheme]) if path == folder else None
        kind = cls("flux")
        return kind.from_pretrained(path, quantization_config=config, torch_dtype=torch.bfloat16, **options)

    return loaded


@torch.no_grad()
def run(model: Any, device: torch.device = GPU) -> Tensor:
    g = torch.Generator().manual_seed(1)
    batch = inputs("flux", torch.bfloat16)
    batch["encoder_hidden_states"] = torch.randn(1, 6, 256, generator=g).to(torch.bfloat16)
    out: Tensor = model(**{k: v.to(device) for k, v in batch.items()}, return_dict=False)[0]
    return out.float().cpu()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@EVERY
def test_kernels_of_the_gpu_run_and_agree_with_the_reference(scheme: str, load: Callable[..., Any]) -> None:
    model = load(scheme, device_map={"": GPU})
    pytest.importorskip("quanto_backend_cuda")
    used = {layer.kernel for layer in quanto.explain(model).layers if layer.kernel}
    assert any(name.startswith("cuda.") for name in used), used
    found = run(model)
    with kernels.select("-quanto-backend-cuda"):
        again = load(scheme, device_map={"": GPU})
        expected = run(again)
    assert error(found, expected) < 2e-2
    assert error(found, run(load(scheme), torch.device("cpu"))) < 2e-2


@EVERY
def test_saved_from_the_gpu_it_is_the_same_model(scheme: str, load: Callable[..., Any], tmp_path: Path) -> None:
    model = load(scheme).to(GPU)
    expected = run(model)
    model.save_pretrained(tmp_path)
    at_once, moved = load(scheme, tmp_path, device_map={"": GPU}), load(scheme, tmp_path).to(GPU)
    for again in (at_once, moved):
        assert torch.equal(run(again), expected)
    mine, its = model.state_dict(), load(scheme, tmp_path).state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name].cpu(), its[name]) for name in mine)


@pytest.mark.parametrize("scheme", ["int8", "int4", "float8", "dynamic"])
@pytest.mark.parametrize(
    "options",
    [
        {"offload_type": "leaf_level"},
        {"offload_type": "leaf_level", "use_stream": True},
        {"offload_type": "leaf_level", "use_stream": True, "record_stream": True, "non_blocking": True},
        {"offload_type": "leaf_level", "use_stream": True, "low_cpu_mem_usage": True},
        {"offload_type": "block_level", "num_blocks_per_group": 1},
        {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": True},
        {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": True, "offload_to_disk_path": ""},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_group_offload(scheme: str, options: dict[str, Any], load: Callable[..., Any], tmp_path: Path) -> None:
    expected = run(load(scheme).to(GPU))
    model = load(scheme)
    if "offload_to_disk_path" in options:
        options = {**options, "offload_to_disk_path": str(tmp_path)}
    model.enable_group_offload(onload_device=GPU, offload_device=torch.device("cpu"), **options)
    for _ in range(3):
        assert error(run(model), expected) < 1e-2
    assert all(p.device.type == "cpu" for m in model.modules() if isinstance(m, QModule) for p in m.parameters(False))


@pytest.mark.parametrize("scheme", ["int8", "int4", "float8"])
def test_sequential_and_model_offload(scheme: str, load: Callable[..., Any]) -> None:
    import accelerate

    expected = run(load(scheme).to(GPU))
    model = accelerate.cpu_offload(load(scheme), GPU, offload_buffers=True)
    for _ in range(2):
        assert error(run(model), expected) < 1e-2
    model, hook = accelerate.cpu_offload_with_hook(load(scheme), GPU)
    for _ in range(2):
        assert error(run(model), expected) < 1e-2
        hook.offload()
        assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("scheme", ["int8", "int4", "float8", "dynamic"])
def test_blocks_compile(scheme: str, load: Callable[..., Any]) -> None:
    torch.compiler.reset()
    model = load(scheme, device_map={"": GPU})
    expected = run(model)
    model.compile_repeated_blocks(fullgraph=True)
    assert error(run(model), expected) < 2e-2


def test_compiled_blocks_are_offloaded(load: Callable[..., Any]) -> None:
    torch.compiler.reset()
    expected = run(load("int8").to(GPU))
    model = load("int8")
    model.enable_group_offload(GPU, torch.device("cpu"), "block_level", num_blocks_per_group=1, use_stream=True)
    model.compile()
    for _ in range(2):
        assert error(run(model), expected) < 2e-2


def test_static_activations(load: Callable[..., Any], tmp_path: Path) -> None:
    model = load("dynamic", device_map={"": GPU})
    dynamic = run(model)
    calibrate(model, lambda: run(model), momentum=0)
    expected = run(model)
    assert error(expected, dynamic) < 5e-2
    model.save_pretrained(tmp_path)
    assert torch.equal(run(load("dynamic", tmp_path, device_map={"": GPU})), expected)


def test_adapters_fuse(load: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    model = load("int8", device_map={"": GPU})
    base = run(model)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "proj_out"], init_lora_weights=False))
    adapted = run(model)
    model.fuse_lora()
    effect = error(adapted, base)
    assert error(run(model), adapted) < 0.2 * effect
    model.unfuse_lora()
    model.disable_adapters()
    assert torch.equal(run(model), base)
