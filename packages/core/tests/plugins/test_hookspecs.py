# SPDX-License-Identifier: Apache-2.0
"""What each hook of a plugin is given, and what comes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto import QType, reference
from quanto.kernels import KernelSpec, Layout, Request, kernels
from quanto.nn import QLinear, modules
from quanto.plugins import PluginManager
from quanto.quantizers import AbsmaxQuantizer

Load = Callable[..., PluginManager]
Make = Callable[..., Any]
FLIP = Layout("quanto-test.flip", lambda t, *_: t, lambda t, *_: t)
SPEC = KernelSpec("quanto-test.int8", "linear", "meta", reference.linear, {"int8"}, layout=FLIP.name)


class Custom(nn.Linear):
    """A module with a twin of its own."""


class QCustom(QLinear, Custom):
    """That twin."""


class Reader:
    """Reads folders with a file `weights.test`: one number, which every weight gets."""

    def detect(self, folder: Path) -> bool:
        return (folder / "weights.test").exists()

    def load(self, folder: Path, model: nn.Module) -> nn.Module:
        value = float((folder / "weights.test").read_text())
        for p in model.parameters():
            nn.init.constant_(p, value)
        return quanto.freeze(quanto.quantize(model, "int8"))


class Mine(AbsmaxQuantizer):
    """An algorithm under another name."""

    name = "mine"


def qtype_hook(register: Callable[[QType], None]) -> None:
    register(QType("uint5test", 5, table=tuple(float(v) for v in range(32))))


def kernel_hook(registry: Any) -> None:
    registry.register_layout(FLIP)
    registry.register(SPEC)


def quantizer_hook(register: Callable[[Any], None]) -> None:
    register(Mine())


def module_hook(registry: Any) -> None:
    registry.register(Custom, QCustom)
    registry.register_by_name("a.library.Class", "another:QClass")


def format_hook(register: Callable[[str, Any], None]) -> None:
    register("testformat", Reader())


def test_register_qtypes(load: Load, entry: Make, plugin: Make) -> None:
    load(entry("types", plugin(register_qtypes=qtype_hook)))
    q = quanto.quantize_tensor(torch.rand(4, 16), "uint5test")
    assert q.codes.shape == (4, 10)
    assert (q.dequantize() - q.dequantize().clamp(0, 1)).abs().max() < 1e-6


def test_register_kernels(load: Load, entry: Make, plugin: Make) -> None:
    load(entry("kernels", plugin(register_kernels=kernel_hook)))
    assert kernels.layouts[FLIP.name] is FLIP
    assert kernels.specs[SPEC.name].origin == "quanto-test"
    request = Request("linear", "meta", torch.float32, "int8", (1, 64), (32, 64), layout=FLIP.name)
    assert kernels.choose(request).spec.name == SPEC.name
    with kernels.select("-quanto-test"):
        assert kernels.choose(request).spec.name != SPEC.name


def test_register_quantizers(load: Load, entry: Make, plugin: Make) -> None:
    load(entry("algorithms", plugin(register_quantizers=quantizer_hook)))
    x = torch.randn(4, 16)
    mine, usual = (quanto.quantize_tensor(x, "int8", algorithm=name) for name in ("mine", "absmax"))
    assert torch.equal(mine.codes, usual.codes)


def test_register_modules(load: Load, entry: Make, plugin: Make) -> None:
    load(entry("twins", plugin(register_modules=module_hook)))
    model = quanto.quantize(nn.Sequential(Custom(4, 4)), "int8")
    assert type(model[0]) is QCustom  # type: ignore[index]
    assert "a.library.Class" in modules.named


def test_register_formats(load: Load, entry: Make, plugin: Make, tmp_path: Path) -> None:
    load(entry("reader", plugin(register_formats=format_hook)))
    (tmp_path / "weights.test").write_text("0.5")
    layer: Any = quanto.load(tmp_path, nn.Linear(4, 2))
    assert layer.frozen
    torch.testing.assert_close(layer(torch.ones(4)), torch.full((2,), 2.5), atol=0.01, rtol=0)


class FakeApp:
    """Names of commands; a block that raises adds none."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    @contextlib.contextmanager
    def transaction(self, origin: str) -> Iterator[None]:
        before = list(self.commands)
        try:
            yield
        except BaseException:
            self.commands = before
            raise


def test_register_commands_of_a_failing_plugin_are_left_out(load: Load, entry: Make, plugin: Make) -> None:
    def works(app: FakeApp) -> None:
        app.commands.append("serve")

    def fails(app: FakeApp) -> None:
        app.commands.append("half")
        raise RuntimeError("no display")

    manager = load(
        *(entry(n, plugin(register_commands=f)) for n, f in (("a", fails), ("b", works), ("c", lambda: None)))
    )
    app = FakeApp()
    with pytest.warns(RuntimeWarning, match="the plugin 'a': its commands were left out: RuntimeError: no display"):
        manager.register_commands(app)
    assert app.commands == ["serve"]
    by_name = {r.name: r for r in manager.records}
    assert by_name["a"].status == "loaded"
    assert "no display" in by_name["a"].reason
    assert by_name["b"].reason == by_name["c"].reason == ""
