# SPDX-License-Identifier: Apache-2.0
"""Finds plugins, lets them register, and survives them.

Entry points load lazily, at the first question that a plugin could answer, each behind a guard: what fails is
recorded, reported once, and rolled back whole, so that a broken plugin behaves like one that isn't installed.
"""

from __future__ import annotations

import os
import threading
import traceback
import warnings
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from . import hookspecs

__all__ = ["PluginManager", "PluginRecord", "plugins"]

GROUP = "quanto"


@dataclass(frozen=True)
class PluginRecord:
    """What became of a plugin.

    Attributes:
        name: entry-point name.
        distribution: name and version of the package, such as `"quanto-backend-cpu 0.1.0"`.
        status: `"loaded"`, `"blocked"` or `"failed"`.
        reason: a sentence, where it was not loaded or its commands are missing.
        detail: the traceback of a failure.
    """

    name: str
    distribution: str
    status: str
    reason: str = ""
    detail: str = ""


class PluginManager:
    """Collects plugins; never dispatches calls."""

    def __init__(self) -> None:
        self.pm = pluggy.PluginManager("quanto")
        self.pm.add_hookspecs(hookspecs)
        self.records: list[PluginRecord] = []
        self._loading = self._loaded = False
        self._lock = threading.RLock()

    def load(self) -> bool:
        """Loads the built-ins and every entry point, once; returns whether this call did it."""
        if self._loaded:
            return False
        with self._lock:  # others wait, or they would choose among half of the kernels
            if self._loading:  # another thread was first; or registering asks what ends up here again
                return False
            self._loading = True
            from . import builtin

            try:
                if not self.pm.has_plugin("quanto-core"):
                    self._register(builtin, "quanto-core")
                done = {(record.name, record.distribution) for record in self.records}
                for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
                    if (entry.name, _distribution(entry)) not in done:
                        self._load(entry)
            except BaseException:
                self._loading = False  # interrupted: the next question goes on from here
                raise
            self._loaded = True
            _warn_of_unknown({name for r in self.records for name in (r.name, r.distribution.split(" ")[0])})
            return True

    def _load(self, entry: EntryPoint) -> None:
        dist = _distribution(entry)
        if not _allowed({entry.name, dist.split(" ")[0]}):
            self.records.append(PluginRecord(entry.name, dist, "blocked", "left out by QUANTO_PLUGINS"))
            return
        try:
            module = entry.load()
            _check_version(module)
            self._register(module, dist.split(" ")[0], entry.name)
        except (Exception, SystemExit) as error:  # scripts that end when they are imported
            reason = f"{type(error).__name__}: {error}"
            self.records.append(PluginRecord(entry.name, dist, "failed", reason, traceback.format_exc()))
            warnings.warn(
                f"quanto: the plugin {entry.name!r} of {dist} was left out: {reason}. "
                f"`quanto info` shows more; QUANTO_PLUGINS=-{entry.name} silences this.",
                RuntimeWarning,
                stacklevel=3,
            )
        else:
            self.records.append(PluginRecord(entry.name, dist, "loaded"))

    def _register(self, module: ModuleType | object, origin: str, name: str | None = None) -> None:
        """Calls the hooks of one plugin; on any error nothing of it remains.

        Args:
            module: the plugin.
            origin: its distribution.
            name: of its entry point, where a distribution may bring several.
        """
        from ..kernels import kernels
        from ..nn.registry import modules
        from ..qtypes import qtypes, register_qtype
        from ..quantizers import quantizers, register_quantizer
        from ..serialization.formats import formats, register_format

        tables: list[dict[Any, Any]] = [qtypes, quantizers, modules.twins, modules.named, formats]
        saved = [dict(t) for t in tables]
        try:
            with kernels.transaction(origin):
                self.pm.register(module, name=name or origin)
                self.pm.check_pending()  # a misspelt hook would otherwise never be called
                for hook, argument in (
                    (self.pm.hook.register_qtypes, {"register": register_qtype}),
                    (self.pm.hook.register_quantizers, {"register": register_quantizer}),
                    (self.pm.hook.register_kernels, {"registry": kernels}),
                    (self.pm.hook.register_modules, {"registry": modules}),
                    (self.pm.hook.register_formats, {"register": register_format}),
                ):
                    for implementation in hook.get_hookimpls():
                        if implementation.plugin is module:
                            implementation.function(*(argument[name] for name in implementation.argnames))
        except BaseException:
            if self.pm.get_plugin(name or origin) is module:
                self.pm.unregister(module)
            for table, before in zip(tables, saved, strict=True):
                table.clear()
                table.update(before)
            raise

    def register_commands(self, app: Any) -> None:
        """Lets core and then every plugin add subcommands; one that fails is reported, and left out whole.

        Args:
            app: the `quanto.cli.app.App`; its `transaction(name)` refuses names that are taken.
        """
        from . import builtin

        self.load()
        hooks = self.pm.hook.register_commands.get_hookimpls()
        for implementation in sorted(hooks, key=lambda hook: hook.plugin is not builtin):
            name = implementation.plugin_name
            try:
                with app.transaction(name):
                    implementation.function(*(app for _ in implementation.argnames))
            except Exception as error:
                if implementation.plugin is builtin:
                    raise
                reason = f"its commands were left out: {type(error).__name__}: {error}"
                self._note(name, reason, traceback.format_exc())
                warnings.warn(f"quanto: the plugin {name!r}: {reason}", RuntimeWarning, stacklevel=2)

    def _note(self, name: str, reason: str, detail: str) -> None:
        """Writes into the record of a loaded plugin what of it is missing."""
        for index, record in enumerate(self.records):
            if record.name == name and record.status == "loaded":
                self.records[index] = replace(record, reason=reason, detail=detail)


def _allowed(names: set[str]) -> bool:
    """`QUANTO_PLUGINS`: unset loads all, empty loads none, `a,b` loads those, `-a` all but a.

    A plugin is meant by the name of its entry point or of its distribution.
    """
    text = os.environ.get("QUANTO_PLUGINS")
    if text is None:
        return True
    words = _words(text)
    if words & {f"-{name}" for name in names}:
        return False
    wanted = {w for w in words if not w.startswith("-")}
    return bool(names & wanted) if wanted or not words else True


def _words(text: str) -> set[str]:
    return {w.strip() for w in text.split(",") if w.strip()}


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def _warn_of_unknown(plugin_names: set[str]) -> None:
    """Names that the environment asks for and nothing has, most often misspelt; blocking what is not there is fine."""
    from ..kernels import kernels

    known = {name for spec in kernels.specs.values() for name in (spec.name, spec.origin)}
    asked = {
        "QUANTO_PLUGINS": {w for w in _words(os.environ.get("QUANTO_PLUGINS", "")) if w[0] != "-"} - plugin_names,
        "QUANTO_KERNELS": kernels.selection[0] - known,
    }
    for variable, names in asked.items():
        if names:
            what = "plugin" if variable == "QUANTO_PLUGINS" else "kernel"
            listed = ", ".join(sorted(names))
            text = f"quanto: {variable} names {listed}, and there is no such {what}; see `quanto info`"
            warnings.warn(text, RuntimeWarning, stacklevel=3)


def _check_version(module: object) -> None:
    found = getattr(module, "QUANTO_API", None)
    if found is None:
        raise TypeError(f"it declares no QUANTO_API; this quanto-core has API {hookspecs.API_VERSION}")
    if type(found) is not int:
        raise TypeError(f"its QUANTO_API must be an integer such as {hookspecs.API_VERSION}, got {found!r}")
    if found != hookspecs.API_VERSION:
        advice = "upgrade the plugin" if found < hookspecs.API_VERSION else "upgrade quanto-core"
        raise TypeError(f"it was written for API {found}, this quanto-core has API {hookspecs.API_VERSION}; {advice}")


#: the process's plugins.
plugins = PluginManager()
