# SPDX-License-Identifier: Apache-2.0
"""quanto for diffusers.

Importing this is enough: diffusers then quantizes, saves and loads with quanto, whichever is imported first.
Installing it is enough too, see `quanto_diffusers.hook`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import hook
from ._version import __version__

if TYPE_CHECKING:
    from .calibration import calibrate
    from .config import QuantoConfig
    from .quantizer import QuantoQuantizer
    from .registration import register

__all__ = ["QuantoConfig", "QuantoQuantizer", "__version__", "calibrate", "register"]

# Looked up when they are asked for: importing this package must not import diffusers, nor be able to fail, since
# `import torch` does it.
_MODULES = {
    "QuantoConfig": "config",
    "QuantoQuantizer": "quantizer",
    "calibrate": "calibration",
    "register": "registration",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


hook.install()
