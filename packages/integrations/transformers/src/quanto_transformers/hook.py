# SPDX-License-Identifier: Apache-2.0
"""Where in transformers and PEFT this package registers, as soon as they are imported; see `_quanto_hosts` of core.

`QUANTO_AUTOLOAD=0` turns this off (as does torch's `TORCH_DEVICE_BACKEND_AUTOLOAD=0`); `import quanto_transformers`
then does the same.
"""

from __future__ import annotations

from _quanto_hosts import Host
from _quanto_hosts import install as _install

__all__ = ["HOSTS", "install"]

_QUANTIZER = ("quanto_transformers.quantizer",)
_ADAPTERS = ("quanto.hosts.adapters",)
HOSTS = (
    Host("transformers.quantizers.auto", _QUANTIZER, "register"),
    # imported after it: for a program that imports the above before torch, which it imports when it is half done
    Host("transformers.modeling_utils", _QUANTIZER, "register"),
    Host("transformers.cache_utils", ("quanto_transformers.cache",), "register_cache"),
    Host("peft.tuners.tuners_utils", _ADAPTERS, "register_peft"),
    Host("peft.utils.other", _ADAPTERS, "register_peft_preparation"),
)


def install() -> None:
    """Registers with what is imported already, and waits for the others. Does so once."""
    _install("quanto_transformers", HOSTS)
