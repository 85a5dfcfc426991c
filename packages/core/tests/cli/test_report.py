# SPDX-License-Identifier: Apache-2.0
"""What is installed and what this machine has."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch

import quanto
from quanto.cli import report
from quanto.cli.report import Device, QTypeReport, Selection, TwinReport, collect
from quanto.kernels import KernelRegistry, references
from quanto.nn.registry import modules
from quanto.plugins import PluginManager, PluginRecord, plugins

Make = Callable[..., PluginManager]


@pytest.fixture(autouse=True)
def _loaded() -> None:
    plugins.load()


def test_versions_are_those_of_python_torch_core_and_plugins(manager_with: Make) -> None:
    manager = manager_with(good=lambda: None)
    manager.records.append(PluginRecord("late", "late-package 0.3", "failed", "ImportError: x", "Traceback"))
    manager.records.append(PluginRecord("loose", "loose.module", "loaded"))
    found = collect(manager)
    assert found.versions == {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "quanto-core": quanto.__version__,
        "good-package": "1.0",
        "late-package": "0.3",
    }
    assert found.plugins == tuple(manager.records)


def test_core_s_own() -> None:
    found = collect()
    assert {q.name for q in found.qtypes} >= {"int8", "int4", "float8_e4m3fn", "nf4"}
    assert QTypeReport("mxfp4", 4, 32, "float8_e8m0fnu") in found.qtypes
    assert set(found.quantizers) >= {"absmax", "minmax"}
    assert TwinReport("torch.nn.Linear", "quanto.nn.linear.QLinear", True, False) in found.modules
    assert TwinReport("torch.nn.Embedding", "quanto.nn.embedding.QEmbedding", False, False) in found.modules
    assert TwinReport("torch.nn.LayerNorm", "quanto.nn.norm.QLayerNorm", True, True) in found.modules
    assert {k.name for k in found.kernels} == set(quanto.kernels.specs)


def test_twins_of_libraries_that_are_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(modules.named, "library.Conv1D", ("plugin.layer:QConv1D", {"default": False}))
    assert collect().modules[-1] == TwinReport("library.Conv1D", "plugin.layer.QConv1D", False, False)
    monkeypatch.setitem(modules.named, "torch.nn.Linear", ("plugin.layer:QLinear", {}))
    assert sum(t.module == "torch.nn.Linear" for t in collect().modules) == 1


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert collect().devices[0].type == "cpu"
    assert collect().devices[0].capability == torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(report, "device_types", lambda: ["cpu", "abacus"])
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(report, "device_name", lambda kind: "Abacus 3000")
    monkeypatch.setattr(report, "device_capability", lambda kind: (9, 0))
    assert collect().devices[1] == Device("abacus", 4, "Abacus 3000", "9.0")


def test_a_device_whose_driver_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kind: str) -> Any:
        raise RuntimeError("no bead\nmoves")

    monkeypatch.setattr(report, "device_types", lambda: ["cpu", "abacus"])
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(report, "device_name", fail)
    assert collect().devices[1] == Device("abacus", 1, "can't be used: no bead moves", "")


def test_what_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, manager_with: Make) -> None:
    kernels = "reference.linear, -reference.pack,-quanto-core,-nobody,quanto-core"
    monkeypatch.setenv("QUANTO_KERNELS", kernels)
    monkeypatch.setenv("QUANTO_PLUGINS", "good,-other,-good")
    registry = KernelRegistry()
    references.register(registry)
    found = collect(manager_with(good=lambda: None), registry).selection
    assert found["QUANTO_KERNELS"] == Selection(
        kernels,
        forced=("quanto-core", "reference.linear"),
        blocked=("nobody", "quanto-core", "reference.pack"),
        unknown=("nobody",),
    )
    assert found["QUANTO_PLUGINS"] == Selection("good,-other,-good", ("good",), ("good", "other"), ("other",))


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTO_PLUGINS", raising=False)
    assert collect().selection["QUANTO_PLUGINS"] == Selection(None, (), (), ())


def test_json() -> None:
    found = json.loads(json.dumps(collect().to_dict()))
    assert list(found) == [
        *("versions", "platform", "devices", "selection", "plugins"),
        *("qtypes", "quantizers", "modules", "formats", "kernels"),
    ]
    assert set(found["plugins"][0] if found["plugins"] else PluginRecord.__dataclass_fields__) == {
        *("name", "distribution", "status", "reason", "detail")
    }
    kernel = next(k for k in found["kernels"] if k["name"] == "torch.int8pack")
    assert kernel["qtypes"] == ["int8"]
    assert kernel["dtypes"] == ["bfloat16"]
    assert next(k for k in found["kernels"] if k["name"] == "reference.linear")["qtypes"] is None
