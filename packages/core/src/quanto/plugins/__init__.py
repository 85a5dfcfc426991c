# SPDX-License-Identifier: Apache-2.0
"""Plugins: how other packages add kernels, qtypes, quantizers, modules, formats and commands."""

from .hookspecs import API_VERSION, hookimpl
from .manager import PluginManager, PluginRecord, plugins

__all__ = ["API_VERSION", "PluginManager", "PluginRecord", "hookimpl", "plugins"]
