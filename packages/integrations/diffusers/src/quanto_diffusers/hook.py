# SPDX-License-Identifier: Apache-2.0
"""Where in diffusers and PEFT this package registers, as soon as they are imported; see `_quanto_hosts` of quanto-core.

`QUANTO_AUTOLOAD=0` turns this off (as does torch's `TORCH_DEVICE_BACKEND_AUTOLOAD=0`); `import quanto_diffusers`
then does the same.
"""

from __future__ import annotations

from _quanto_hosts import Host
from _quanto_hosts import install as _install

__all__ = ["HOSTS", "install"]

_OURS = ("quanto_diffusers.config", "quanto_diffusers.quantizer")
HOSTS = (
    Host("diffusers.quantizers.auto", _OURS, "register"),
    # imported after it: for a program that imports the above before torch, which it imports when it is half done
    Host("diffusers.models.modeling_utils", _OURS, "register_models"),
    Host("diffusers.loaders.lora_pipeline", (), "register_lora"),
    Host("diffusers.hooks.group_offloading", (), "register_offload"),
    Host("peft.tuners.tuners_utils", (), "register_peft"),
)


def install() -> None:
    """Registers with what is imported already, and waits for the others. Does so once."""
    _install("quanto_diffusers", HOSTS)
