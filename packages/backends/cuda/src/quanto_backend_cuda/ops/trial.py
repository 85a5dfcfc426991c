# SPDX-License-Identifier: Apache-2.0
"""`Trial`: kernels in Gluon are believed only after one call of each kind of problem was right.

Gluon is experimental, and compiles what a version of Triton makes of it. So a call is compared with decoding and
cuBLAS; what Triton refuses or computes otherwise is said once, and other kernels go on. The kernel compiles in another
thread while the call waits for decoding and cuBLAS to compile. Where it takes seconds their result is the answer to the
first call, and the second waits for the kernel: kinds that a model has several of compile side by side, and what a call
computes depends on its place in the row, never on time.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime import compiling, interpreted, warpgroups
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
        postpones: whether it takes seconds to compile, so that the first call does not wait for it.
        refused: whether it is not to be used again.
        checked: kinds of problems whose first call was right.
    """

    def __init__(self, what: str, postpones: bool = False) -> None:
        self.what = what
        self.postpones = postpones
        self.refused = False
        self.checked: set[Any] = set()
        self._begun: dict[Any, _Compiling] = {}
        self._mutex = threading.Lock()

    def serves(self, device: torch.device) -> bool:
        """Whether the kernel runs there: the device has Hopper's instructions, and Triton the language."""
        return warpgroups(device) and not self.refused and not interpreted() and gluon()

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
        *,
        reference: Callable[[], Tensor] | None = None,
    ) -> bool:
        """Starts the kernel, which writes `out`; False if it can't be used.

        Args:
            kind: what makes another kernel of it.
            start: starts the kernel.
            x, weight, bias, out, qtype, block: operands, the weight tiled, and the result.
            reference: computes the same otherwise; default: by decoding the weight and cuBLAS.
        """
        if kind in self.checked:
            return self._try(start)
        if torch.cuda.is_current_stream_capturing() if x.is_cuda else False:
            return False  # nothing can be compared now
        with self._mutex:
            begun = self._begun.get(kind)
            first = begun is None
            if begun is None:
                begun = self._begun[kind] = _Compiling(start, x.device)
        want = linear_by_parts(x, weight, bias, qtype, block, True) if reference is None else reference()
        if first and self.postpones:
            out.copy_(want)
            return True
        if not self._try(begun.wait) or not self._try(start):
            return False
        if not bool(want.isfinite().all()):
            out.copy_(want)
            return True
        if not _same(out, want):
            (m, k), n = x.shape, out.shape[1]
            self._refuse(f"it computes something else for {qtype} of {n}x{k} and {m} token{'s' * (m > 1)}")
            return False
        self.checked.add(kind)
        self._begun.pop(kind, None)
        return True

    def _try(self, call: Callable[[], None]) -> bool:
        """Calls; False, said once, if that raises."""
        try:
            call()
        except Exception as error:  # whatever a version of an experimental language may raise
            self._refuse(f"Triton refuses it: {_words(error)}")
            return False
        return True

    def _refuse(self, why: str) -> None:
        self.refused = True
        said = f"quanto-backend-cuda leaves its kernel for {self.what} alone: {why}; slower ones run"
        warnings.warn(said, stacklevel=5)


class _Compiling:
    """Compiles a kernel in another thread. Its arguments are made in this one, whose stream may be captured later."""

    def __init__(self, start: Callable[[], None], device: torch.device) -> None:
        self._device = device
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        try:
            with compiling() as work:
                start()
        except Exception as error:
            self._error = error
            return
        self._thread = threading.Thread(target=self._run, args=(work,), name="quanto-gluon")
        self._thread.start()

    def _run(self, work: list[Callable[[], None]]) -> None:
        try:
            with torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext():
                for compile_one in work:
                    compile_one()
        except Exception as error:
            self._error = error

    def wait(self) -> None:
        """Returns when it is done; raises what Triton raised."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error


def _same(got: Tensor, want: Tensor) -> bool:
    return bool(((got.float() - want.float()).abs() <= _SAME * want.float().abs().max()).all())


def _words(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"
