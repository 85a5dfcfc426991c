# SPDX-License-Identifier: Apache-2.0
"""Defines `torch.ops.quanto_cuda.<name>` with the schema of an operator of `quanto.ops`.

What `torch.library.triton_op` does, with the schema given instead of inferred, and with a choice: where a graph is
traced and the number of tokens is known, the operator dissolves into its Triton kernels, which Inductor then sees;
where it is symbolic, the operator stays whole, and chooses its kernel when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quanto.ops import FAKES, SCHEMAS

from ..runtime import import_triton

__all__ = ["NAMESPACE", "define"]

NAMESPACE = "quanto_cuda"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(name: str, like: str, function: Callable[..., Any], dissolves: Callable[..., bool] | None = None) -> Any:
    """Defines an operator.

    Args:
        name: of the operator.
        like: the operator of `quanto.ops` whose schema and fake it has.
        function: `(*args, traced)`; with `traced` every kernel must be started by `launch(…, traced=True)`.
        dissolves: given the arguments, whether the operator dissolves while a graph is traced; None: never.

    Returns:
        The overload.
    """
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    _library.define(name + SCHEMAS[like], tags=(torch.Tag.pt2_compliant_tag,))

    def run(*args: Any) -> Any:
        import_triton()
        return function(*args, traced=False)

    _library.impl(name, run, "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, FAKES[like], lib=_library)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    if dissolves is None:
        return overload

    def trace(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_exporting() or not _static(args) or not dissolves(*args):
            return mode.__torch_dispatch__(op, types, args, kwargs)
        import_triton()
        with mode:
            return function(*args, traced=True)

    torch.library.register_torch_dispatch(qualified, FunctionalTensorMode, trace, lib=_library)
    return overload


def _static(args: tuple[Any, ...]) -> bool:
    """Whether every size is a number."""
    return all(type(n) is int for a in args if isinstance(a, Tensor) for n in a.shape)
