# SPDX-License-Identifier: Apache-2.0
"""What a layer may apply to its result at the end, by name, so that a kernel can do it before it stores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

__all__ = ["NONLINEARITIES", "apply", "check_nonlinearity"]

#: by name; `""` is none.
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def apply(y: Tensor, name: str) -> Tensor:
    """`y` through the function of that name; `y` itself where it is `""`.

    Raises:
        ValueError: if there is no such function.
    """
    check_nonlinearity(name)
    return NONLINEARITIES[name](y) if name else y


def check_nonlinearity(name: str) -> None:
    """Raises ValueError, naming those that there are, if there is no such function."""
    if name and name not in NONLINEARITIES:
        raise ValueError(f"nonlinearity must be one of {', '.join(NONLINEARITIES)} or empty, got {name!r}")
