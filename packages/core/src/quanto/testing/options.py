# SPDX-License-Identifier: Apache-2.0
"""The options of `pytest --pyargs quanto.testing`."""

from __future__ import annotations

import pytest

from ..kernels import KernelSpec
from .run import chosen

__all__ = ["selected"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--backend` and `--device`."""
    group = parser.getgroup("quanto", "quanto's conformance suite for kernels")
    group.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="a distribution or a kernel to test, repeatable or separated by commas; "
        "without it, every kernel but the references",
    )
    group.addoption("--device", metavar="TYPE", help="only kernels of this device type, such as cpu")


def pytest_sessionstart(session: pytest.Session) -> None:
    """A wrong name is one line, not an error of collection."""
    selected(session.config)


def pytest_report_header(config: pytest.Config) -> str:
    """Names what is tested."""
    specs, _ = selected(config)
    return f"kernels: {', '.join(f'{spec.name} ({spec.origin})' for spec in specs)}"


def selected(config: pytest.Config) -> tuple[list[KernelSpec], str | None]:
    """The kernels that the command line asks for, and the device.

    Raises:
        pytest.UsageError: if there are none.
    """
    words = config.getoption("backend", None) or []
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    device = config.getoption("device", None)
    try:
        specs = chosen(names, device)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if not specs:
        raise pytest.UsageError(f"no kernel to test{f' on {device}' if device else ''}: name one with --backend NAME")
    return specs, device
