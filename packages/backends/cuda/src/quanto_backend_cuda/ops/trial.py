# SPDX-License-Identifier: Apache-2.0
"""`Trial`: kernels in Gluon are believed only after their first call.

Gluon is experimental, and compiles what a version of Triton makes of it. So the first call of each kind of problem is
compared with decoding and cuBLAS; what Triton refuses or computes otherwise is said once, and other kernels go on.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .dense import linear_by_parts

__all__ = ["Trial", "gluon"]

# Share of the largest value by which the first call may differ from decoding and cuBLAS, which round the same weight.
_SAME = 0.02


@functools.cache
def gluon() -> bool:
    """Whether Triton has the language for Hopper."""
    try:
        return importlib.util.find_spec("triton.experimental.gluon.nvidia.hopper") is not None
    except ModuleNotFoundError:
        return False


class Trial:
    """What is known of a kernel.

    Attributes:
        what: the kernel, in words.
        refused: whether it is not to be used again.
        checked: kinds of problems whose first call was right.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.refused = False
        self.checked: set[Any] = set()

    def run(
        self,
        kind: Any,
        start: Callable[[], None],
        x: Tensor,
        weight: Sequence[Any],
        bias: Tensor | None,
        out: Tensor,
        qtype: str,
        block: Sequence[int],
    ) -> bool:
        """Starts the kernel, which writes `out` from a tiled weight; False if it can't be used."""
        known = kind in self.checked
        if not known and (torch.cuda.is_current_stream_capturing() if x.is_cuda else False):
            return False  # nothing can be compared now
        try:
            start()
        except Exception as error:  # whatever a version of an experimental language may raise
            self._refuse(f"Triton refuses it: {_words(error)}")
            return False
        if known:
            return True
        want = linear_by_parts(x, weight, bias, qtype, block, True)
        if not bool(want.isfinite().all()):
            out.copy_(want)
            return True
        if not _same(out, want):
            (m, k), n = x.shape, out.shape[1]
            self._refuse(f"it computes something else for {qtype} of {n}x{k} and {m} token{'s' * (m > 1)}")
            return False
        self.checked.add(kind)
        return True

    def _refuse(self, why: str) -> None:
        self.refused = True
        said = f"quanto-backend-cuda leaves its kernel for {self.what} alone: {why}; slower ones run"
        warnings.warn(said, stacklevel=5)


def _same(got: Tensor, want: Tensor) -> bool:
    return bool(((got.float() - want.float()).abs() <= _SAME * want.float().abs().max()).all())


def _words(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"
