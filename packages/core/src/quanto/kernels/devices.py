# SPDX-License-Identifier: Apache-2.0
"""What this machine has, asked of torch by device type, so that no vendor is named."""

from __future__ import annotations

import torch

__all__ = ["device_available", "device_capability", "device_name", "device_types"]


def device_types() -> list[str]:
    """The device types of this machine: `"cpu"`, and the accelerator torch was built for where there is one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


def device_available(device: str) -> bool:
    """Whether tensors can be put on that device type here; `"any"` always."""
    if device in ("any", "cpu"):
        return True
    try:
        module = torch.get_device_module(device)
    except RuntimeError:  # a device type this torch has never heard of
        return False
    return bool(getattr(module, "is_available", lambda: False)())


def device_capability(device: str) -> tuple[int, int] | None:
    """`(major, minor)` of the current device of that type; None where the notion does not exist."""
    if device == "cpu" or not device_available(device):
        return None
    get = getattr(torch.get_device_module(device), "get_device_capability", None)
    found = get() if get is not None else None
    return found[:2] if isinstance(found, tuple) else None


def device_name(device: str) -> str:
    """The product name of the current device of that type, or an empty string."""
    if device == "cpu" or not device_available(device):
        return ""
    get = getattr(torch.get_device_module(device), "get_device_name", None)
    return "" if get is None else str(get())
