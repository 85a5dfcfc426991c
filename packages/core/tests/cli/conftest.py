# SPDX-License-Identifier: Apache-2.0
"""Command lines with chosen plugins; without the extra `cli`, only what must hold without it is collected."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import quanto
from quanto.plugins import PluginManager, PluginRecord, builtin, hookimpl, plugins
from quanto.serialization.formats import formats

INSTALLED = find_spec("typer") is not None and find_spec("rich") is not None
collect_ignore = [p.name for p in Path(__file__).parent.glob("test_*.py") if not INSTALLED and p.name != "test_main.py"]


@pytest.fixture
def manager_with() -> Callable[..., PluginManager]:
    """Makes a manager of its own: core, and plugins that have nothing but a command hook."""

    def make(**hooks: Callable[[Any], None]) -> PluginManager:
        manager = PluginManager()
        manager._loaded = True  # nothing but what follows
        manager.pm.register(builtin, name="quanto-core")
        for name, hook in hooks.items():
            plugin = ModuleType(name)
            plugin.register_commands = hookimpl(hook)  # type: ignore[attr-defined]
            manager.pm.register(plugin, name=name)
            manager.records.append(PluginRecord(name, f"{name}-package 1.0", "loaded"))
        return manager

    return make


class Bytes(nn.Module):
    """A language model over bytes: the next one from this one."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=100_000)
        self.embed = nn.Embedding(256, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))
        self.lm_head = nn.Linear(32, 256, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.lm_head(x)


@pytest.fixture
def language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of such a model, and a format that opens it, floating or quantized."""
    plugins.load()
    folder = tmp_path / "float"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(Bytes().state_dict(), folder / "model.safetensors")
    (folder / "bytes.json").write_text("{}")

    def open_folder(path: Path) -> tuple[nn.Module, Any]:
        model = Bytes().eval()
        if (path / "quanto.json").exists():
            quanto.load(path, model)
        else:
            model.load_state_dict(load_file(path / "model.safetensors"))
        return model, lambda text: torch.tensor(list(text.encode()))

    linear = [f"blocks.{i}.{j}" for i in range(2) for j in (0, 2)]
    able = SimpleNamespace(
        detect=lambda path: False,
        accepts=lambda path: (path / "bytes.json").exists(),
        layers=lambda path: dict.fromkeys(linear, "rows"),
        open=open_folder,
        complete=lambda source, path, manifest: (path / "completed").write_text(str(len(manifest.modules))),
    )
    monkeypatch.setitem(formats, "bytes", able)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("It was the best of times, it was the worst of times. " * 40)
    return path
