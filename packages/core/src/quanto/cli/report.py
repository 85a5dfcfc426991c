# SPDX-License-Identifier: Apache-2.0
"""`Report`: what is installed and what this machine has, as data."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..kernels import KernelRegistry, kernels
from ..kernels.devices import device_capability, device_name, device_types
from ..nn.registry import ModuleRegistry, modules
from ..plugins.manager import PluginManager, PluginRecord, plugins
from ..qtypes import qtypes
from ..quantizers import quantizers
from ..serialization.formats import formats
from .kernel_report import KernelReport, dtype_name, kernel_reports

__all__ = ["Device", "QTypeReport", "Report", "Selection", "TwinReport", "collect"]


@dataclass(frozen=True)
class Device:
    """A device type of this machine; `capability` is the instruction set or the compute capability."""

    type: str
    count: int
    name: str
    capability: str


@dataclass(frozen=True)
class QTypeReport:
    """A qtype; `block` and `scale_dtype` where the format fixes them."""

    name: str
    bits: int
    block: int | None
    scale_dtype: str | None


@dataclass(frozen=True)
class TwinReport:
    """A float class, its quantized twin, and the fields of `quanto.nn.Twin`."""

    module: str
    quantized: str
    default: bool
    only_activations: bool


@dataclass(frozen=True)
class Selection:
    """What an environment variable chooses.

    Attributes:
        value: of the variable, None where it is not set.
        forced: names that it forces (kernels) or loads alone (plugins).
        blocked: names that it blocks.
        unknown: those of both that nothing installed has.
    """

    value: str | None
    forced: tuple[str, ...]
    blocked: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything that `quanto info` shows; `selection` is by the name of the environment variable."""

    versions: dict[str, str]
    platform: str
    devices: tuple[Device, ...]
    selection: dict[str, Selection]
    plugins: tuple[PluginRecord, ...]
    qtypes: tuple[QTypeReport, ...]
    quantizers: tuple[str, ...]
    modules: tuple[TwinReport, ...]
    formats: tuple[str, ...]
    kernels: tuple[KernelReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def collect(manager: PluginManager = plugins, registry: KernelRegistry = kernels) -> Report:
    """Loads the plugins and asks everything that they and core have registered."""
    manager.load()
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "quanto-core": __version__}
    for record in manager.records:
        name, _, version = record.distribution.partition(" ")
        if version:
            versions[name] = version
    return Report(
        versions=versions,
        platform=f"{platform.system()} {platform.machine()}",
        devices=tuple(_device(kind) for kind in device_types()),
        selection={"QUANTO_KERNELS": _kernels(registry), "QUANTO_PLUGINS": _plugins(manager)},
        plugins=tuple(manager.records),
        qtypes=tuple(
            QTypeReport(q.name, q.bits, q.block, None if q.scale_dtype is None else dtype_name(q.scale_dtype))
            for q in qtypes.values()
        ),
        quantizers=tuple(sorted(quantizers)),
        modules=_twins(modules),
        formats=tuple(sorted(formats)),
        kernels=kernel_reports(registry),
    )


def _device(kind: str) -> Device:
    if kind == "cpu":
        name = platform.processor().removeprefix(platform.machine())  # some systems know no more than that
        return Device(kind, 1, name, torch.backends.cpu.get_cpu_capability())
    try:
        name, found = device_name(kind), device_capability(kind)
    except RuntimeError as error:  # a driver that answers and then fails is worth reporting, not dying of
        name, found = f"can't be used: {' '.join(str(error).split())}", None
    return Device(kind, torch.accelerator.device_count(), name, "" if found is None else ".".join(map(str, found)))


def _twins(registry: ModuleRegistry) -> tuple[TwinReport, ...]:
    found = {}
    for module, twin in registry.twins.items():
        name, quantized = _class_name(module), _class_name(twin.quantized)
        found[name] = TwinReport(name, quantized, twin.default, twin.only_activations)
    for name, (quantized, options) in registry.named.items():  # of libraries that nobody has imported yet
        default, only_activations = options.get("default", True), options.get("only_activations", False)
        found.setdefault(name, TwinReport(name, quantized.replace(":", "."), default, only_activations))
    return tuple(found.values())


def _class_name(cls: type) -> str:
    short = "torch.nn." + cls.__name__
    return short if getattr(nn, cls.__name__, None) is cls else f"{cls.__module__}.{cls.__qualname__}"


def _kernels(registry: KernelRegistry) -> Selection:
    forced, blocked = registry.selection
    names = set(registry.specs)
    origins = {spec.origin for spec in registry.specs.values()}
    return _selection("QUANTO_KERNELS", forced, blocked, (forced | blocked) - names - origins)


def _plugins(manager: PluginManager) -> Selection:
    words = {word.strip() for word in os.environ.get("QUANTO_PLUGINS", "").split(",")} - {""}
    blocked = {word[1:] for word in words if word.startswith("-")}
    forced = {word for word in words if not word.startswith("-")}
    known = {name for r in manager.records for name in (r.name, r.distribution.split(" ")[0])}
    return _selection("QUANTO_PLUGINS", forced, blocked, (forced | blocked) - known)


def _selection(variable: str, forced: Any, blocked: Any, unknown: Any) -> Selection:
    return Selection(os.environ.get(variable), *(tuple(sorted(names)) for names in (forced, blocked, unknown)))
