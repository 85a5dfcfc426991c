# SPDX-License-Identifier: Apache-2.0
"""Plugins register through hooks; a broken one is reported once, leaves nothing behind and breaks nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import quanto
from quanto import reference
from quanto.kernels import KernelSpec, Layout
from quanto.nn import QLinear, QModule
from quanto.plugins import PluginManager
from quanto.quantizers import AbsmaxQuantizer, quantizers

Load = Callable[..., PluginManager]
Make = Callable[..., Any]
LAYOUT = Layout("quanto-test.flip", lambda t, *_: t, lambda t, *_: t)
SPEC = KernelSpec("quanto-test.int8", "linear", "meta", reference.linear, {"int8"}, layout=LAYOUT.name)


class Custom(nn.Linear):
    """A module with a twin of its own."""


class QCustom(QLinear, Custom):
    """That twin."""


class Mine(AbsmaxQuantizer):
    """An algorithm under another name."""

    name = "mine"


def quantizer_hook(register: Callable[[Any], None]) -> None:
    register(Mine())


def kernel_hook(registry: Any) -> None:
    registry.register_layout(LAYOUT)
    registry.register(SPEC)


def module_hook(registry: Any) -> None:
    registry.register(Custom, QCustom)
    registry.register_by_name("a.library.Class", "another:QClass")


HOOKS: dict[str, Callable[..., None]] = {
    "register_qtypes": lambda register: register(quanto.QType("uint5test", 5, table=(0.0,) * 32)),
    "register_kernels": kernel_hook,
    "register_quantizers": quantizer_hook,
    "register_modules": module_hook,
    "register_formats": lambda register: register("test", SimpleNamespace(detect=print, load=print)),
}


# -- what breaks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", HOOKS)
@pytest.mark.parametrize("error", [ValueError("no such instruction"), SystemExit(2)], ids=["error", "exit"])
def test_a_hook_that_raises_takes_everything_back(
    load: Load, entry: Make, plugin: Make, snapshot: Callable[[], Any], broken: str, error: BaseException
) -> None:
    def breaks(**arguments: Any) -> None:
        HOOKS[broken](*arguments.values())
        raise error

    # pluggy reads the names of the arguments
    with_registry: Callable[..., None] = lambda registry: breaks(registry=registry)  # noqa: E731
    with_register: Callable[..., None] = lambda register: breaks(register=register)  # noqa: E731
    hook = with_registry if broken in ("register_kernels", "register_modules") else with_register
    before = snapshot()
    with pytest.warns(RuntimeWarning, match=rf"the plugin 'bad' of quanto-test 1\.2 was left out: .*{error}"):
        manager = load(entry("bad", plugin(**{**HOOKS, broken: hook})), entry("good", plugin()))
    assert snapshot() == before
    assert not any(p for n, p in manager.pm.list_name_plugin() if n == "bad")
    assert [(r.name, r.status) for r in manager.records] == [("bad", "failed"), ("good", "loaded")]
    assert "Traceback" in manager.records[0].detail
    assert f"{type(error).__name__}: {error}" == manager.records[0].reason


@pytest.mark.parametrize(
    ("api", "sentence"),
    [
        (None, "TypeError: it declares no QUANTO_API; this quanto-core has API 1"),
        (0, "it was written for API 0, this quanto-core has API 1; upgrade the plugin"),
        (2, "it was written for API 2, this quanto-core has API 1; upgrade quanto-core"),
        ("1", "its QUANTO_API must be an integer such as 1, got '1'"),
    ],
)
def test_other_versions_are_left_out(load: Load, entry: Make, plugin: Make, api: Any, sentence: str) -> None:
    made = plugin(api, register_quantizers=quantizer_hook)
    with pytest.warns(RuntimeWarning, match=sentence):
        assert load(entry("old", made)).records[0].status == "failed"
    assert "mine" not in quantizers


@pytest.mark.parametrize(
    "error", [ImportError("No module named 'triton'"), SyntaxError("invalid syntax"), SystemExit("not a library")]
)
def test_a_plugin_that_cannot_be_imported(load: Load, entry: Make, error: BaseException) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager = load(entry("bad", error))
        assert not manager.load(), "it is not tried again"
    assert len(caught) == 1
    assert f"{type(error).__name__}: {error}. `quanto info` shows more; QUANTO_PLUGINS=-bad" in str(caught[0].message)
    assert quanto.quantize_tensor(torch.ones(2, 2), "int8") is not None


def test_an_interrupt_is_no_failure_of_the_plugin(
    load: Load, entry: Make, plugin: Make, snapshot: Callable[[], Any]
) -> None:
    def interrupted(register: Any) -> None:
        quantizer_hook(register)
        raise KeyboardInterrupt

    before = snapshot()
    with pytest.raises(KeyboardInterrupt):
        load(entry("slow", plugin(register_quantizers=interrupted)))
    assert snapshot() == before


def test_after_an_interrupt_the_rest_is_loaded(
    load: Load, entry: Make, plugin: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def impatient(register: Any) -> None:
        calls.append("b")
        if len(calls) == 1:
            raise KeyboardInterrupt
        quantizer_hook(register)

    manager = load()
    monkeypatch.setattr(manager, "_loading", False)
    monkeypatch.setattr(manager, "_loaded", False)
    entries = [entry("a", plugin()), entry("b", plugin(register_quantizers=impatient)), entry("c", plugin())]
    monkeypatch.setattr(quanto.plugins.manager, "entry_points", lambda group: entries)
    with pytest.raises(KeyboardInterrupt):
        manager.load()
    assert manager.load()
    assert [(r.name, r.status) for r in manager.records] == [("a", "loaded"), ("b", "loaded"), ("c", "loaded")]
    assert "mine" in quantizers
    assert not manager.load()


def test_a_kernel_that_nobody_has_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    names = frozenset({"cpu.linaer", "quanto-core", "reference.linear"}), frozenset({"not.here"})
    monkeypatch.setattr(quanto.kernels, "_forced", names[0])
    monkeypatch.setattr(quanto.kernels, "_blocked", names[1])
    with pytest.warns(RuntimeWarning, match="QUANTO_KERNELS names cpu.linaer, and there is no such kernel"):
        load()


@pytest.mark.parametrize(
    ("hooks", "sentence"),
    [
        ({"register_kernel": lambda registry: None}, "unknown hook 'register_kernel'"),
        ({"register_kernels": lambda register: None}, "register_kernels"),
        ({"register_quantizers": lambda register: register(AbsmaxQuantizer())}, "'absmax' is registered already"),
        ({"register_modules": lambda registry: registry.register(nn.Linear, QLinear)}, "has the twin QLinear already"),
        ({"register_modules": lambda registry: registry.register(nn.Bilinear, QModule)}, "must inherit"),
        (
            {"register_kernels": lambda registry: registry.register(SPEC)},
            "register its layout 'quanto-test.flip' first",
        ),
    ],
)
def test_mistakes_are_named(load: Load, entry: Make, plugin: Make, hooks: dict[str, Any], sentence: str) -> None:
    with pytest.warns(RuntimeWarning, match="was left out") as caught:
        load(entry("bad", plugin(**hooks)))
    assert sentence in str(caught[0].message)


# -- what is loaded ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "loaded"),
    [(None, "abc"), ("", ""), (" , ", ""), ("a, c", "ac"), ("-b", "ac"), ("a,-a", ""), ("-a,-b,-c", ""), ("other", "")],
)
def test_the_environment_chooses(
    load: Load, entry: Make, plugin: Make, monkeypatch: pytest.MonkeyPatch, text: str | None, loaded: str
) -> None:
    if text is None:
        monkeypatch.delenv("QUANTO_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("QUANTO_PLUGINS", text)
    entries = [entry(name, plugin()) for name in "cba"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = load(*entries).records
    expected = ["quanto: QUANTO_PLUGINS names other, and there is no such plugin; see `quanto info`"]
    assert [str(w.message) for w in caught] == (expected if text == "other" else [])
    assert [r.name for r in records] == ["a", "b", "c"]
    assert "".join(r.name for r in records if r.status == "loaded") == loaded
    assert all(r.reason == "left out by QUANTO_PLUGINS" for r in records if r.status == "blocked")
    assert "".join(sorted(e.name for e in entries if e.loads)) == loaded, "what is blocked is not even imported"


def test_one_distribution_may_bring_several_plugins(load: Load, entry: Make, plugin: Make) -> None:
    first, second = plugin(register_quantizers=quantizer_hook), plugin(register_kernels=kernel_hook)
    manager = load(entry("one", first), entry("two", second), entry("nameless", plugin(), distribution=None))
    assert {(r.name, r.distribution, r.status) for r in manager.records} == {
        ("one", "quanto-test 1.2", "loaded"),
        ("two", "quanto-test 1.2", "loaded"),
        ("nameless", "somewhere:plugin", "loaded"),
    }
    with pytest.warns(RuntimeWarning, match="'two' of quanto-test"):
        again = load(entry("one", plugin()), entry("two", SimpleNamespace(QUANTO_API=1)), entry("two", first))
    assert [r.status for r in again.records] == ["loaded", "loaded", "failed"]
    assert again.pm.get_plugin("two") is not None, "a second plugin of that name does not remove the first"


def test_threads_wait_until_everything_is_there(
    monkeypatch: pytest.MonkeyPatch, load: Load, entry: Make, plugin: Make
) -> None:
    barrier = threading.Barrier(4)

    def slow(register: Any) -> None:
        time.sleep(0.05)
        quantizer_hook(register)

    load()
    monkeypatch.setattr(
        quanto.plugins.manager, "entry_points", lambda group: [entry("slow", plugin(register_quantizers=slow))]
    )
    manager = PluginManager()

    def ask(_: int) -> tuple[bool, bool]:
        barrier.wait()
        return manager.load(), "mine" in quantizers

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert sorted(first for first, _ in answers) == [False, False, False, True]
    assert all(there for _, there in answers)


def test_a_plugin_may_ask_while_it_registers(load: Load, entry: Make, plugin: Make) -> None:
    managers: list[bool] = []

    def asks(register: Any) -> None:
        managers.append(quanto.plugins.plugins.load())
        quanto.quantize_tensor(torch.ones(2, 2), "int8")

    assert load(entry("asks", plugin(register_quantizers=asks))).records[0].status == "loaded"
    assert managers == [False]


def test_variables_of_the_environment_reach_a_process(tmp_path: Path) -> None:
    """A distribution on the path, one of two plugins blocked, and a kernel of core blocked by name."""
    info = tmp_path / "quanto_demo-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quanto-demo\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[quanto]\nfine = demo_plugin\nblocked = demo_missing\n")
    (tmp_path / "demo_plugin.py").write_text("QUANTO_API = 1\n")
    code = """
        import torch, quanto
        from quanto.plugins import plugins
        assert not plugins.records, "nothing is loaded with quanto"
        layer = quanto.freeze(quanto.quantize(torch.nn.Linear(64, 32, dtype=torch.bfloat16), "int8"))
        records = {r.name: r for r in plugins.records if r.distribution.startswith("quanto-demo")}
        assert records["fine"].status == "loaded" and records["blocked"].status == "blocked", records
        text = str(quanto.explain(layer))
        assert "reference.linear" in text and "torch.int8pack: blocked by QUANTO_KERNELS" in text, text
    """
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": path, "QUANTO_PLUGINS": "fine", "QUANTO_KERNELS": "-torch.int8pack"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=os.environ | variables, check=True, timeout=120)
