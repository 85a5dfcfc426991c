# SPDX-License-Identifier: Apache-2.0
"""torch's fused path of transformer encoders, which reads the weights of its layers and never calls them.

In evaluation without gradients `nn.TransformerEncoderLayer` gives its submodules' weights to one operator. While those
are still trainable floats it would compute as if nothing was quantized (torch 2.11 and 2.13); frozen ones it declines.
"""

from __future__ import annotations

from torch import nn

from .base import QModule

__all__ = ["fuse", "unfuse"]

#: the attribute that, being false, keeps torch from its fused path
_SWITCHES: dict[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
    nn.TransformerEncoder: "use_nested_tensor",
}
_KEPT = "_quanto_fused"


def unfuse(model: nn.Module) -> None:
    """Has encoders that hold quantized modules call them."""
    for module in model.modules():
        name = next((n for kind, n in _SWITCHES.items() if isinstance(module, kind)), None)
        if name is None or not getattr(module, name, None) or not any(isinstance(m, QModule) for m in module.modules()):
            continue
        module.__dict__[_KEPT] = getattr(module, name)
        setattr(module, name, type(getattr(module, name))(0))


def fuse(model: nn.Module) -> None:
    """Undoes `unfuse`."""
    for module in model.modules():
        name = next((n for kind, n in _SWITCHES.items() if isinstance(module, kind)), None)
        if name is not None and _KEPT in module.__dict__:
            setattr(module, name, module.__dict__.pop(_KEPT))
