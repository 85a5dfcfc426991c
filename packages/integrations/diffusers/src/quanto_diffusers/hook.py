# SPDX-License-Identifier: Apache-2.0
"""How diffusers finds quanto: a hook that runs right after it has imported its table of quantizers.

diffusers has no entry point for quantizers of other packages, but torch has one for device backends, which runs at
the end of `import torch`. What runs there costs microseconds, imports nothing but the standard library, and may not
raise, for torch would not be importable then. It puts a finder before Python's own, which waits for the modules below
and, once one of them is imported, registers quanto there.

`QUANTO_AUTOLOAD=0` turns this off (as does torch's `TORCH_DEVICE_BACKEND_AUTOLOAD=0`); `import quanto_diffusers`
then does the same.
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

__all__ = ["HOSTS", "Host", "install"]


@dataclass(frozen=True)
class Host:
    """A module of another library that quanto registers with.

    Attributes:
        name: of the module.
        ours: the modules of this package that are registered there. Whoever imports one first imports the host in the
            midst of it, and registering has to wait until they are whole.
        function: of `quanto_diffusers.registration`.
    """

    name: str
    ours: tuple[str, ...]
    function: str


_OURS = ("quanto_diffusers.config", "quanto_diffusers.quantizer")
HOSTS = (
    Host("diffusers.quantizers.auto", _OURS, "register"),
    # imported after it: for a program that imports the above before torch, which it imports when it is half done
    Host("diffusers.models.modeling_utils", _OURS, "register_models"),
    Host("diffusers.loaders.lora_pipeline", (), "register_lora"),
    Host("peft.tuners.tuners_utils", (), "register_peft"),
)
_WAITED_FOR = {name for host in HOSTS for name in (host.name, *host.ours)}


class _Finder(MetaPathFinder):
    """Finds what is waited for by way of the other finders, and wraps its loader."""

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _WAITED_FOR or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy.discard(fullname)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Another loader, and a call after it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        found: ModuleType | None = self._loader.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        name = module.__name__
        for host in HOSTS:
            others = [n for n in host.ours if n != name and n in sys.modules]
            concerned = name == host.name or (name in host.ours and _is_whole(host.name))
            if concerned and all(map(_is_whole, others)):
                _register(host)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _is_whole(name: str) -> bool:
    """Whether a module is imported, all of it."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def _register(host: Host) -> None:
    """Registers; whatever fails is said and does not break the import that led here."""
    try:
        getattr(importlib.import_module("quanto_diffusers.registration"), host.function)()
    except Exception as error:
        warnings.warn(
            f"quanto-diffusers could not register with {host.name}: {type(error).__name__}: {error}. "
            "QUANTO_AUTOLOAD=0 silences this.",
            RuntimeWarning,
            stacklevel=2,
        )


def install() -> None:
    """Registers with what is imported already, and waits for the others. Does so once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        for host in HOSTS:
            if _is_whole(host.name):
                _register(host)
