# SPDX-License-Identifier: Apache-2.0
"""`quanto info`: what is installed, what this machine has, and which kernels it can run."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated

import typer

from . import kernel_table
from .kernel_report import KernelReport
from .output import print_json
from .report import Device, Report, Selection, collect
from .table import Table, show

__all__ = ["info", "kept", "tables"]


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Add the tracebacks of what failed.")] = False,
    kernel: Annotated[str, typer.Option(metavar="NAME", help="Only kernels of this name; * stands for anything.")] = "",
    device: Annotated[str, typer.Option(metavar="TYPE", help="Only kernels for this device type.")] = "",
    op: Annotated[str, typer.Option(metavar="NAME", help="Only kernels of this operator.")] = "",
) -> None:
    """Show versions, devices, plugins and kernels, and why a kernel can't be used here."""
    report = collect()
    kernels = kept(report.kernels, kernel, device, op)
    if as_json:
        print_json(replace(report, kernels=kernels).to_dict())
    elif kernel or device or op:
        show(lambda width: kernel_table.tables(kernels, width, every=True))
    else:
        show(lambda width: tables(report, details, width))


def kept(
    kernels: tuple[KernelReport, ...], kernel: str = "", device: str = "", op: str = ""
) -> tuple[KernelReport, ...]:
    """The kernels of a name, a device type and an operator, each a pattern as in the shell; an empty one keeps all.

    Raises:
        ValueError: if there is none, naming those that there are.
    """
    for field, pattern in (("op", op), ("device", device), ("name", kernel)):
        if not pattern:
            continue
        known = dict.fromkeys(getattr(k, field) for k in kernels)
        found = {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f"no kernel with the {field} {pattern!r}; there are: {', '.join(known)}")
        if field == "device":
            found.add("any")
        kernels = tuple(k for k in kernels if getattr(k, field) in found)
    return kernels


def tables(report: Report, details: bool = False, width: int | None = None) -> list[Table]:
    """The report as tables: for a terminal of so many columns, or for plain lines of any length."""
    found = [_overview(report), _plugins(report), *kernel_table.tables(report.kernels, width)]
    if details:
        found += [Table(f"plugin {p.name}", ("",), ((p.detail.rstrip(),),)) for p in report.plugins if p.detail]
    return found


def _overview(report: Report) -> Table:
    twins = {
        "modules": [t for t in report.modules if t.default and not t.only_activations],
        "  by rule or include": [t for t in report.modules if not t.default],
        "  with activations": [t for t in report.modules if t.default and t.only_activations],
    }
    rows = [
        *report.versions.items(),
        ("platform", report.platform),
        *(("device", _device(device)) for device in report.devices),
        ("qtypes", ", ".join(q.name for q in report.qtypes)),
        ("quantizers", ", ".join(report.quantizers)),
        *((name, ", ".join(t.module.removeprefix("torch.nn.") for t in found)) for name, found in twins.items()),
        ("formats", ", ".join(("quanto", *report.formats))),
        ("QUANTO_KERNELS", _selection(report.selection["QUANTO_KERNELS"], "forces")),
        ("QUANTO_PLUGINS", _selection(report.selection["QUANTO_PLUGINS"], "loads only")),
    ]
    return Table("quanto", ("", ""), tuple(rows))


def _device(device: Device) -> str:
    count = f"{device.count} x " if device.count > 1 else ""
    details = ", ".join(part for part in (device.name, device.capability) if part)
    return f"{count}{device.type}" + (f" ({details})" if details else "")


def _selection(selection: Selection, verb: str) -> str:
    if selection.value is None:
        return "not set"
    parts = ((verb, selection.forced), ("blocks", selection.blocked), ("not installed:", selection.unknown))
    return "; ".join(f"{word} {', '.join(names)}" for word, names in parts if names) or "set to nothing"


def _plugins(report: Report) -> Table:
    if not report.plugins:
        return Table("plugins", ("",), (("none installed",),))
    rows = tuple((p.name, p.distribution, p.status, " ".join(p.reason.split())) for p in report.plugins)
    return Table("plugins", ("name", "distribution", "status", "reason"), rows)
