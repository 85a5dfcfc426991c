# SPDX-License-Identifier: Apache-2.0
"""Questions about devices, asked of torch without naming a vendor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from quanto.kernels.devices import device_available, device_capability, device_name, device_types


def _device(monkeypatch: pytest.MonkeyPatch, **answers: object) -> None:
    module = SimpleNamespace(**{name: lambda answer=answer: answer for name, answer in answers.items()})
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)


def test_the_cpu_is_always_there() -> None:
    assert device_types()[0] == "cpu"
    assert device_available("cpu")
    assert device_available("any")
    assert device_capability("cpu") is None
    assert device_name("cpu") == ""


def test_unknown_devices_are_absent() -> None:
    assert not device_available("abacus")
    assert device_capability("abacus") is None
    assert device_name("abacus") == ""


@pytest.mark.parametrize(
    ("answers", "available", "capability", "name"),
    [
        ({"is_available": True, "get_device_capability": (9, 0), "get_device_name": "H"}, True, (9, 0), "H"),
        ({"is_available": True, "get_device_capability": (9, 4, "a")}, True, (9, 4), ""),
        ({"is_available": True, "get_device_capability": {"version": 12}}, True, None, ""),
        ({"is_available": True}, True, None, ""),
        ({"is_available": False, "get_device_capability": (9, 0), "get_device_name": "H"}, False, None, ""),
        ({}, False, None, ""),
    ],
)
def test_devices_of_every_kind(
    monkeypatch: pytest.MonkeyPatch, answers: dict, available: bool, capability: object, name: str
) -> None:
    _device(monkeypatch, **answers)
    assert device_available("gadget") is available
    assert device_capability("gadget") == capability
    assert device_name("gadget") == name


def test_the_accelerator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("meta"))
    assert device_types() == ["cpu", "meta"]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert device_types() == ["cpu"]
