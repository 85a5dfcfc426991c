# SPDX-License-Identifier: Apache-2.0
"""quanto for transformers.

Importing this is enough: transformers then quantizes, saves and loads with quanto, whichever is imported first.
Installing it is enough too, see `quanto_transformers.hook`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import hook
from ._version import __version__

if TYPE_CHECKING:
    from .cache import QuantoCacheLayer
    from .calibration import calibrate
    from .config import QuantoConfig
    from .decoding import decode_ahead
    from .qat import freeze
    from .quantizer import QuantoHfQuantizer
    from .registration import register

__all__ = [
    "QuantoCacheLayer",
    "QuantoConfig",
    "QuantoHfQuantizer",
    "__version__",
    "calibrate",
    "decode_ahead",
    "freeze",
    "register",
]

# Looked up when they are asked for: importing this package must not import transformers, nor be able to fail, since
# `import torch` does it.
_MODULES = {
    "QuantoCacheLayer": "cache",
    "QuantoConfig": "config",
    "QuantoHfQuantizer": "quantizer",
    "calibrate": "calibration",
    "decode_ahead": "decoding",
    "freeze": "qat",
    "register": "registration",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


hook.install()
