# SPDX-License-Identifier: Apache-2.0
"""Which kernels and checks a run of the suite has."""

from __future__ import annotations

from collections.abc import Iterator

from ..kernels import KernelSpec, kernels
from ..kernels.devices import device_available, device_types
from ..plugins import plugins
from .cases import Case, cases, refusals
from .checks import CHECKS, Check

__all__ = ["chosen", "devices", "failures", "plan", "refusals"]


def chosen(names: list[str], device: str | None = None) -> list[KernelSpec]:
    """The kernels of those names or distributions; without names, all but the references.

    Raises:
        ValueError: if a name fits no kernel, naming those that are known.
    """
    plugins.load()
    specs = list(kernels.specs.values())
    for name in names:
        if not any(name in (s.name, s.origin) for s in specs):
            for record in plugins.records:
                if name in (record.name, record.distribution.split(" ")[0]) and record.status != "loaded":
                    raise ValueError(f"the plugin {record.name!r} was not loaded: {record.reason}")
            known = sorted({s.origin for s in specs} | {s.name for s in specs if not s.reference})
            raise ValueError(f"no kernel and no distribution {name!r}; known: {', '.join(known)}")
    found = [s for s in specs if (s.name in names or s.origin in names if names else not s.reference)]
    return [s for s in found if device is None or s.device in ("any", device)]


def devices(spec: KernelSpec, device: str | None = None) -> list[str]:
    """The device types to run a kernel on; none if this machine lacks its device."""
    if spec.device != "any":
        return [spec.device] if device_available(spec.device) else []
    return [device] if device is not None else device_types()


def plan(spec: KernelSpec, device: str) -> Iterator[tuple[Check, Case]]:
    """Every check of a kernel with every case it applies to."""
    found = cases(spec, device)
    for check in CHECKS.values():
        seen: set[str] = set()
        for case in found:
            if check.applies(case) and not (check.once and case.first.qtype in seen):
                seen.add(case.first.qtype)
                yield check, case


def failures(spec: KernelSpec, device: str = "cpu") -> list[str]:
    """Runs the suite on one kernel without pytest.

    Args:
        spec: a kernel; one of a layout of its own must be registered.
        device: type, where the kernel runs on any.

    Returns:
        One line per failed check, with its sentence; empty if the kernel conforms.
    """
    if not cases(spec, device):
        return [f"refuses everything the suite asks: {refusals(spec, device)}"]
    said = ((check, _sentence(check, case)) for check, case in plan(spec, device))
    return [f"{check.name}: {sentence}" for check, sentence in said if sentence is not None]


def _sentence(check: Check, case: Case) -> str | None:
    try:
        check.run(case)
    except Exception as error:
        return f"{case}: {error}" if isinstance(error, AssertionError) else f"{case}: {type(error).__name__}: {error}"
    return None
