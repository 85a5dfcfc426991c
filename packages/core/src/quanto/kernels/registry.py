# SPDX-License-Identifier: Apache-2.0
"""The registry: which kernels exist, and which one a layer gets.

Choosing happens once per (operator, weight, device, dtypes) and is cached; a call then costs one dictionary lookup.
Under torch.compile and torch.export the choice is a constant of the graph.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..weight import CANONICAL
from .layout import WEIGHT_AT, Layout
from .spec import KernelSpec, Request

if TYPE_CHECKING:
    from .selfcheck import Check

__all__ = ["Candidate", "Choice", "KernelConflict", "KernelFallbackWarning", "KernelRegistry", "kernels"]


_CORE = "quanto-core"


class KernelFallbackWarning(UserWarning):
    """A layer runs the plain-torch reference although a faster kernel for its qtype is installed."""


class KernelConflict(ValueError):
    """Two kernels claim the same request at the same priority."""


@dataclass(frozen=True)
class Candidate:
    """A kernel and, if it was not eligible, the sentence that says why."""

    spec: KernelSpec
    refusal: str | None


@dataclass(frozen=True)
class Choice:
    """The kernel a request gets, and every other that was looked at (fastest first)."""

    request: Request
    spec: KernelSpec
    candidates: tuple[Candidate, ...]


def _selection(text: str) -> tuple[frozenset[str], frozenset[str]]:
    words = [w.strip() for w in text.split(",") if w.strip()]
    blocked = frozenset(w[1:] for w in words if w.startswith("-"))
    return frozenset(w for w in words if not w.startswith("-")), blocked


def _kind(request: Request) -> tuple[object, ...]:
    """What a kernel's self check depends on: all of a request but its sizes."""
    r = request
    return r.device, r.qtype, r.dtype, r.granularity, r.zero_point, r.activations


def _checks_itself(spec: KernelSpec, request: Request) -> bool:
    return spec.checks_itself is not None and spec.checks_itself(request)


class KernelRegistry:
    """Kernels and layouts by name. Every method is safe to call from several threads."""

    def __init__(self) -> None:
        self.specs: dict[str, KernelSpec] = {}
        self.layouts: dict[str, Layout] = {}
        #: callables by kernel name; what the operators call.
        self.calls: dict[str, Callable[..., Any]] = {}
        self._functions: dict[tuple[str, str], tuple[Callable[..., Any], str]] = {}
        self._names: dict[tuple[str, str, str, torch.dtype, str], str] = {}
        #: kernels of `linear` by (weight key, device, dtype): the shortest path of eager calls.
        self.direct: dict[tuple[str, torch.device, torch.dtype], Callable[..., Any]] = {}
        self._fastest: dict[Request, str] = {}
        self._distrusted: dict[str, str] = {}
        self._checked: set[tuple[object, ...]] = set()
        self._begun: dict[tuple[object, ...], Check] = {}
        self._warned: set[str] = set()
        self._origin = _CORE
        self._lock = threading.RLock()
        self._forced, self._blocked = _selection(os.environ.get("QUANTO_KERNELS", ""))

    # -- registration ------------------------------------------------------------------------------------------

    def register(self, spec: KernelSpec) -> None:
        """Adds a kernel.

        Raises:
            ValueError: if the name is taken, or the operator or the layout is unknown.
            KernelConflict: if another kernel claims the same at the same priority; the message names both.
        """
        from ..ops import SCHEMAS

        with self._lock:
            spec = replace(spec, origin=self._origin)
            if spec.op not in SCHEMAS:
                raise ValueError(f"kernel {spec.name!r}: no operator {spec.op!r}; known: {', '.join(SCHEMAS)}")
            if not spec.qtypes and self._origin != _CORE:
                raise ValueError(f"kernel {spec.name!r} claims no qtype")
            if spec.name in self.specs:
                other = self.specs[spec.name]
                raise ValueError(f"kernel {spec.name!r} of {spec.origin} is registered already by {other.origin}")
            if spec.layout != CANONICAL and spec.layout not in self.layouts:
                raise ValueError(f"kernel {spec.name!r}: register its layout {spec.layout!r} first")
            for other in self.specs.values():
                if spec.overlaps(other):
                    raise KernelConflict(
                        f"kernels {spec.name!r} ({spec.origin}) and {other.name!r} ({other.origin}) claim the same "
                        f"{spec.op} at priority {spec.priority}; block one, as in QUANTO_PLUGINS=-NAME"
                    )
            self.specs[spec.name] = spec
            self.calls[spec.name] = spec.fn
            self._forget()

    def register_layout(self, layout: Layout) -> None:
        """Adds a layout.

        Raises:
            ValueError: if the name is taken.
        """
        with self._lock:
            if layout.name == CANONICAL or layout.name in self.layouts:
                raise ValueError(f"layout {layout.name!r} is registered already")
            self.layouts[layout.name] = layout

    def register_function(self, name: str, device: str, fn: Callable[..., Any]) -> None:
        """Adds a function that reads no quantized weight, and so needs no claims; the package that asks defines it.

        Raises:
            ValueError: if another is registered under the name for the device.
        """
        with self._lock:
            if (name, device) in self._functions:
                raise ValueError(f"function {name!r} for {device} is registered by {self._functions[name, device][1]}")
            self._functions[name, device] = fn, self._origin

    def function(self, name: str, device: str) -> Callable[..., Any] | None:
        """The function of a backend for a type of device; None if no backend has one, or it is blocked."""
        from ..plugins.manager import plugins

        plugins.load()
        fn, origin = self._functions.get((name, device), (None, ""))
        return None if origin in self._blocked else fn

    @contextmanager
    def transaction(self, origin: str) -> Iterator[None]:
        """Registers under the name of a distribution; takes all of it back if anything in the block raises."""
        with self._lock:
            saved = dict(self.specs), dict(self.layouts), dict(self.calls), self._origin, dict(self._functions)
            self._origin = origin
            try:
                yield
            except BaseException:
                self.specs, self.layouts, self._functions = saved[0], saved[1], saved[4]
                self.calls.clear()
                self.calls.update(saved[2])
                raise
            finally:
                self._origin = saved[3]
                self._forget()

    def _forget(self) -> None:
        self._names = {}  # anew, so that a choice made before and still under way is written where nobody reads
        self._fastest = {}
        self.direct.clear()

    # -- choosing ----------------------------------------------------------------------------------------------

    def name_for(self, op: str, key: str, device: str, dtype: torch.dtype, activations: str = "") -> str:
        """The name of the kernel for a weight; the hot path."""
        try:
            return self._names[op, key, device, dtype, activations]
        except KeyError:
            return self._choose_and_check(op, key, device, dtype, activations)

    def layout_for(self, request: Request) -> str:
        """The layout of the fastest kernel for a weight, whatever its present one; a model has many alike."""
        known = self._fastest
        if request not in known:
            spec = self.choose(request, any_layout=True).spec
            known[request] = spec.layout
            self._begin(spec, request)
        return known[request]

    def _begin(self, spec: KernelSpec, request: Request) -> None:
        """Begins the self check of a kernel that compiles, while a model's weights are arranged for it."""
        if not spec.compiles or request.device == "cpu" or _checks_itself(spec, request):
            return
        subject = (spec.name, *_kind(request))
        with self._lock:
            if subject in self._checked or subject in self._begun:
                return
            self._begun[subject] = self._check(spec, request)

    def _check(self, spec: KernelSpec, request: Request) -> Check:
        from .selfcheck import Check

        return Check(spec, request, self.layouts.get(spec.layout), self.specs[f"reference.{request.op}"].fn)

    def choose(self, request: Request, any_layout: bool = False) -> Choice:
        """Chooses without running anything.

        Args:
            request: what is needed.
            any_layout: whether kernels of other layouts may answer, as when a weight is about to be arranged.
        """
        from ..plugins.manager import plugins

        plugins.load()
        with self._lock:
            ranked = sorted(
                (s for s in self.specs.values() if s.op == request.op),
                key=lambda s: (not self._forces(s), -s.priority, s.name),
            )
            candidates = tuple(Candidate(s, self._refusal(s, request, any_layout)) for s in ranked)
            # a forced reference serves every layout, by unpacking it
            fits = (c for c in candidates if c.refusal is None or (c.spec.reference and self._forces(c.spec)))
            chosen = next((c.spec for c in fits), None)
        if chosen is None or (chosen.layout != request.layout and not any_layout):
            chosen = self._unpacking_reference(request)
        return Choice(request, chosen, candidates)

    def out_of_service(self, spec: KernelSpec) -> str | None:
        """Why a kernel is given no request at all, whatever it claims; None if it is in service."""
        if not spec.reference and (spec.name in self._blocked or spec.origin in self._blocked):
            return "blocked by QUANTO_KERNELS or quanto.kernels.select"
        return self._distrusted.get(spec.name)

    def _forces(self, spec: KernelSpec) -> bool:
        return spec.name in self._forced or (spec.origin in self._forced and not spec.reference)

    def _refusal(self, spec: KernelSpec, request: Request, any_layout: bool) -> str | None:
        reason = self.out_of_service(spec) or spec.refusal(request)
        if reason is None and spec.layout != request.layout and not any_layout:
            return f"takes the layout {spec.layout}, not {request.layout}"
        return reason

    def _unpacking_reference(self, request: Request) -> KernelSpec:
        """The reference for a weight that lies in a kernel's layout which nobody can take (another dtype, say)."""
        reference = self.specs[f"reference.{request.op}"]
        layout = self.layouts[request.layout]
        blocks, size, first = request.block_size, request.shape[-1], WEIGHT_AT[request.op]

        def call(*args: Any) -> Any:
            canonical = layout.unpack(args[first : first + 4], request.qtype, blocks, size)
            return reference.fn(*args[:first], *canonical, *args[first + 4 :])

        name = f"{reference.name}[{request.layout},{request.qtype},{blocks},{size}]"
        self.calls.setdefault(name, call)
        return replace(reference, name=name, layout=request.layout)

    def _choose_and_check(self, op: str, key: str, device: str, dtype: torch.dtype, activations: str) -> str:
        request = Request.parse(op, key, device, dtype, activations)
        while True:
            names = self._names
            choice = self.choose(request)
            spec = choice.spec
            subject = (spec.name, *_kind(request))
            if spec.reference or subject in self._checked or _checks_itself(spec, request):
                break
            check = self._begun.pop(subject, None) or self._check(spec, request)
            lie = check.result()
            if lie is None:
                self._checked.add(subject)
                break
            self.distrust(spec.name, lie)
        self._warn_of_fallback(choice)
        names[op, key, device, dtype, activations] = choice.spec.name
        return choice.spec.name

    def distrust(self, name: str, reason: str) -> None:
        """Takes a kernel out of service for this process, with one warning."""
        with self._lock:
            if name in self._distrusted:
                return  # another thread found it out as well
            spec = self.specs[name]
            self._distrusted[name] = f"failed its self check: {reason}"
            self._forget()
        warnings.warn(
            f"quanto: kernel {name!r} of {spec.origin} is replaced by the next best: {reason}. "
            f"Please report it to {spec.origin}; QUANTO_KERNELS=-{name} silences this.",
            RuntimeWarning,
            stacklevel=4,
        )

    def _warn_of_fallback(self, choice: Choice) -> None:
        """Says once per reason why a kernel made for this qtype and device is not the one that runs.

        Not where the user forced the reference or blocked the kernel, and not a second time after `distrust`.
        """
        request = choice.request
        if not choice.spec.reference:
            return
        if any(self.out_of_service(c.spec) and c.spec.refusal(request) is None for c in choice.candidates):
            return  # it would have taken this: the user, or `distrust`, has said what there is to say
        for candidate in choice.candidates:
            spec = candidate.spec
            if candidate.refusal is None:
                return
            made_for = spec.device in ("any", request.device) and request.qtype in spec.qtypes
            if made_for and request.activations in spec.activations and self.out_of_service(spec) is None:
                reason = f"{spec.name} {candidate.refusal}"
                if reason not in self._warned:
                    self._warned.add(reason)
                    message = f"the slow reference runs {request}: the kernel {reason}"
                    warnings.warn(message, KernelFallbackWarning, stacklevel=5)
                return

    # -- by name -----------------------------------------------------------------------------------------------

    @property
    def selection(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names that QUANTO_KERNELS and `select` force at present, and those that they block."""
        return self._forced, self._blocked

    @contextmanager
    def select(self, *names: str) -> Iterator[None]:
        """Forces kernels by name, or blocks them (`"-name"`), within the block.

        A distribution's name stands for all of its kernels.

        A compiled model keeps the kernels it was compiled with.

        Raises:
            ValueError: if no such kernel exists.
        """
        from ..plugins.manager import plugins

        plugins.load()
        origins = {s.origin for s in self.specs.values()} | {origin for _, origin in self._functions.values()}
        known = set(self.specs) | origins
        for name in names:
            if name.removeprefix("-") not in known:
                raise ValueError(f"no kernel {name!r}; known: {', '.join(sorted(self.specs))}")
        forced, blocked = _selection(",".join(names))
        with self._lock:
            saved = self._forced, self._blocked
            self._forced, self._blocked = saved[0] | forced, saved[1] | blocked
            self._forget()
        try:
            yield
        finally:
            with self._lock:
                self._forced, self._blocked = saved
                self._forget()


#: the process's registry.
kernels = KernelRegistry()
