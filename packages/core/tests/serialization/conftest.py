# SPDX-License-Identifier: Apache-2.0
"""What the tests of saved folders share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto.serialization.folder import write_file
from quanto.serialization.header import TensorInfo, build_header


def _bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    values = b"" if tensor.is_meta else bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
    return tensor.dtype, tuple(tensor.shape), values


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[nn.Module], dict[str, Any]]:
    """Everything of a model that a load could change: classes, attributes, identities, the bytes of every tensor."""

    def take(model: nn.Module) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, module in model.named_modules():
            found[f"{name}:class"] = type(module)
            found[f"{name}:attributes"] = {key: id(value) for key, value in module.__dict__.items()}
            for table in ("_parameters", "_buffers"):
                for leaf, tensor in module.__dict__[table].items():
                    found[f"{name}.{leaf}"] = (
                        tensor if tensor is None else (id(tensor), tensor.requires_grad, _bits(tensor))
                    )
        return found

    return take


@pytest.fixture(scope="session")
def bits() -> Callable[[nn.Module], dict[str, Any]]:
    """dtype, shape and bytes of every tensor of a model's state."""
    return lambda model: {name: _bits(tensor) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="session")
def float_model() -> Callable[[], nn.Module]:
    """Makes two linear layers of 64 and 16 inputs."""

    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 4))

    return make


@pytest.fixture
def saved(tmp_path: Path, float_model: Callable[[], nn.Module]) -> Path:
    """That model as int4 in groups of 32, in a folder with one shard."""
    quanto.save(quanto.freeze(quanto.quantize(float_model(), "int4", group_size=32)), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def write_floats() -> Callable[[Mapping[str, torch.Tensor], Path], None]:
    """Writes tensors to a safetensors file; that library itself needs numpy for it, which core's tests do without."""

    def write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        infos = {name: TensorInfo(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        data = (bytes(t.detach().contiguous().reshape(-1).view(torch.uint8).tolist()) for t in tensors.values())
        write_file(path, [build_header(infos), *data])

    return write
