# SPDX-License-Identifier: Apache-2.0
"""What this package gives to quanto-core: twins of diffusers' own modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quanto.plugins import hookimpl

if TYPE_CHECKING:
    from quanto.nn import ModuleRegistry

QUANTO_API = 1

#: causal convolutions of video autoencoders, which pad and then do as `nn.Conv3d` does.
_CAUSAL = (
    "diffusers.models.autoencoders.autoencoder_kl_wan.WanCausalConv3d",
    "diffusers.models.autoencoders.autoencoder_kl_qwenimage.QwenImageCausalConv3d",
)


@hookimpl
def register_modules(registry: ModuleRegistry) -> None:
    """Twins by name, so that nothing imports diffusers unless a model does."""
    for name in _CAUSAL:
        registry.register_by_name(name, f"quanto_diffusers.causal:Q{name.rpartition('.')[2]}")
