# SPDX-License-Identifier: Apache-2.0
"""`Trial`: kernels in Gluon are believed only after one call of each kind of problem was right.

Gluon is experimental, and compiles what a version of Triton makes of it. So a call is compared with what torch alone
computes; what Triton refuses or computes otherwise is said once, and other kernels go on. The kernel compiles in
another thread. Where it takes seconds the result of torch is the answer to the first call, and the second waits for the
kernel: kinds that a model has several of compile side by side, and what a call computes depends on its place in the
row, never on time. While a CUDA graph is recorded nothing can be compared, so what was not believed before is recorded
with another kernel, which is said once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..runtime import compiling, interpreted, warpgroups
from ..tables import Tile
from .plain import linear_by_torch

__all__ = ["Trial", "agrees", "attempts", "gluon"]

# Share of a row's largest value by which the first call may differ from torch's, which rounds the same weight.
_SAME = 0.02
# Kernels that are compiled before anybody asks, at the most; one after another, since two hold each other up.
_PREPARED = 8
_in_a_row = threading.Lock()


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
        subject: what the kernel is for, in words.
        postpones: whether it takes seconds to compile, so that the first call does not wait for it.
        refused: whether it is not to be used again.
        checked: kinds of problems whose first call was right.
    """

    def __init__(self, subject: str, postpones: bool = False) -> None:
        self.subject = subject
        self.postpones = postpones
        self.refused = False
        self.checked: set[Any] = set()
        self._late = False
        self._begun: dict[Any, _Compiling] = {}
        self._prepared: dict[Any, _Compiling] = {}
        self._mutex = threading.Lock()

    def serves(self, device: torch.device) -> bool:
        """Whether the kernel runs there: the device has Hopper's instructions, and Triton the language."""
        return warpgroups(device) and not self.refused and not interpreted() and gluon()

    def prepare(self, kind: Any, start: Callable[[], None], device: torch.device) -> None:
        """Compiles a kernel that the first call will want; what goes wrong is met, and said, by that call."""
        with self._mutex:
            if len(self._prepared) >= _PREPARED or kind in self._prepared or kind in self.checked:
                return
            with contextlib.suppress(Exception):
                self._prepared[kind] = _Compiling(start, device, _in_a_row)

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
            reference: computes the same otherwise; default: by torch alone, which compiles nothing.
        """
        if kind in self.checked:
            start()  # it compiled once, so what it raises now is not that Triton refuses it
            return True
        if torch.cuda.is_current_stream_capturing() if x.is_cuda else False:
            self._say_late()
            return False
        prepared = self._prepared.get(kind)
        if prepared is not None:
            with contextlib.suppress(Exception):
                prepared.wait()
        with self._mutex:
            begun = self._begun.get(kind)
            first = begun is None
            if begun is None:
                begun = self._begun[kind] = _Compiling(start, x.device)
        want = linear_by_torch(x, weight, bias, qtype, block) if reference is None else reference()
        if first and self.postpones:
            out.copy_(want)
            return True
        if not self._try(begun.wait) or not self._try(start):
            return False
        right = agrees(out, want)
        if right is None:  # nothing to compare: zeros, infinities
            out.copy_(want)
            return True
        if not right:
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
        except torch.OutOfMemoryError:
            raise  # of the caller's model
        except Exception as error:  # whatever a version of an experimental language may raise
            self._refuse(f"Triton refuses it: {_words(error)}")
            return False
        return True

    def _say_late(self) -> None:
        if self._late:
            return
        self._late = True
        again = "twice" if self.postpones else "once"
        said = f"a CUDA graph is recorded with a slower kernel than that for {self.subject}, which was not tried before"
        warnings.warn(f"{said}; call the model {again} with as many tokens before it is recorded", stacklevel=5)

    def _refuse(self, why: str) -> None:
        self.refused = True
        said = f"quanto-backend-cuda leaves its kernel for {self.subject} alone: {why}; slower ones run"
        warnings.warn(said, stacklevel=5)


def attempts(
    clusters: Trial, alone: Trial, tile: Tile, cluster: int, device: torch.device
) -> Iterator[tuple[Trial, Tile, int]]:
    """What to try of a kernel that may run in clusters, which another version of Triton may start otherwise.

    It is for the caller to go through them: a warning of a trial points at who called that.

    Args:
        clusters, alone: what is known of it in clusters, and without.
        tile: as tables have it.
        cluster: blocks of a cluster that such tiles make there; 1: they make none.
        device: where.

    Yields:
        A trial, the tile, and the blocks of a cluster; last the same tile without clusters.
    """
    if cluster > 1:
        if clusters.serves(device):
            yield clusters, tile, cluster
        tile = replace(tile, cluster=1)
    yield alone, tile, 1


class _Compiling:
    """Compiles a kernel in another thread. Its arguments are made in this one, whose stream may be captured later.

    Args:
        start: starts the kernel.
        device: where.
        turn: a lock that it waits for, or None.
    """

    def __init__(self, start: Callable[[], None], device: torch.device, turn: Any = None) -> None:
        self._device = device
        self._turn = contextlib.nullcontext() if turn is None else turn
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        try:
            with compiling() as work:
                start()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._error = error
            return
        self._thread = threading.Thread(target=self._run, args=(work,), name="quanto-gluon")
        self._thread.start()

    def _run(self, work: list[Callable[[], None]]) -> None:
        try:
            at = torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()
            with self._turn, at:
                for compile_one in work:
                    if threading.main_thread().is_alive():  # else the process waits, for what nobody will call
                        compile_one()
        except Exception as error:
            self._error = error

    def wait(self) -> None:
        """Returns when it is done; raises what Triton raised."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error


def agrees(got: Tensor, want: Tensor) -> bool | None:
    """Whether two results `[rows, columns]` are the same but for rounding, each row by its own largest value.

    Returns:
        None where no row of `want` tells: zeros, or values that are not finite. Rows of NaN must be such in both.
    """
    got, want = got.float(), want.float()
    size = want.abs().amax(-1, keepdim=True)
    tells = size.isfinite() & (size > 0)
    nan = want.isnan().all(-1, keepdim=True)
    right = ((got - want).abs() <= _SAME * size) | ~tells
    right &= got.isnan() | ~nan
    if not bool(right.all()):
        return False
    return True if bool(tells.any()) else None


def _words(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"
