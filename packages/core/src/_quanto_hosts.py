# SPDX-License-Identifier: Apache-2.0
"""How other libraries find quanto: a hook that runs right after they have imported a module of theirs.

transformers and diffusers have no entry point for quantizers of other packages, but torch has one for device backends,
which runs at the end of `import torch`. What runs there costs microseconds, imports nothing but the standard library
(so this lies outside of `quanto`, which imports torch), and may not raise, for torch would not be importable then. It
puts a finder before Python's own, which waits for modules by name and, once one of them is imported, registers quanto
there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["Host", "install"]


@dataclass(frozen=True)
class Host:
    """A module of another library that quanto registers with.

    Attributes:
        name: of the module.
        ours: the modules of an integration that are registered there. Whoever imports one first imports the host in the
            midst of it, and registering has to wait until they are whole.
        function: what registers, of the integration's module `registration`.
    """

    name: str
    ours: tuple[str, ...]
    function: str


class _Finder(MetaPathFinder):
    """Finds what an integration waits for by way of the other finders, and wraps its loader."""

    def __init__(self, package: str, hosts: Sequence[Host]) -> None:
        self.package, self.hosts = package, tuple(hosts)
        self._waited_for = {name for host in hosts for name in (host.name, *host.ours)}
        self._busy: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._waited_for or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy.discard(fullname)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self)
        return spec

    def imported(self, name: str) -> None:
        """Registers with the hosts that have waited for the module of that name only."""
        for host in self.hosts:
            others = [n for n in host.ours if n != name and n in sys.modules]
            concerned = name == host.name or (name in host.ours and _is_whole(host.name))
            if concerned and all(map(_is_whole, others)):
                self.register(host)

    def register(self, host: Host) -> None:
        """Registers; whatever fails is said and does not break the import that led here."""
        try:
            getattr(importlib.import_module(f"{self.package}.registration"), host.function)()
        except Exception as error:
            warnings.warn(
                f"{self.package.replace('_', '-')} could not register with {host.name}: {type(error).__name__}: "
                f"{error}. QUANTO_AUTOLOAD=0 silences this.",
                RuntimeWarning,
                stacklevel=2,
            )


class _Loader(Loader):
    """Another loader, and a call after it."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        found: ModuleType | None = self._loader.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._finder.imported(module.__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _is_whole(name: str) -> bool:
    """Whether a module is imported, all of it."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def install(package: str, hosts: Sequence[Host]) -> None:
    """Registers an integration with what is imported already, and waits for the others. Does so once.

    Args:
        package: the integration's import name; its module `registration` has the functions.
        hosts: where to register.
    """
    if any(isinstance(finder, _Finder) and finder.package == package for finder in sys.meta_path):
        return
    finder = _Finder(package, hosts)
    sys.meta_path.insert(0, finder)
    for host in finder.hosts:
        if _is_whole(host.name):
            finder.register(host)
