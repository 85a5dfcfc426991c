# SPDX-License-Identifier: Apache-2.0
"""Where things are in this repository: its packages, its sources, its documents."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Folders that tools write, and `shared`, where models may lie: a folder of that name is never part of the tree. Nor are
# hidden folders, but these two.
UNTRACKED = {"venv", "__pycache__", "build", "dist", "node_modules", "shared", "htmlcov"}
TRACKED_HIDDEN = {".ci", ".github"}


@dataclass(frozen=True)
class Package:
    """One distribution: the folder that holds its `pyproject.toml`."""

    folder: Path

    @property
    def role(self) -> str:
        """`core`, `backend` or `integration`."""
        parent = self.folder.parent.name
        return parent.removesuffix("s") if parent != "packages" else "core"

    @cached_property
    def manifest(self) -> str:
        """The text of `pyproject.toml`."""
        return (self.folder / "pyproject.toml").read_text(encoding="utf-8")

    @property
    def distribution(self) -> str:
        """The name on the index, for example `quanto-core`."""
        found = re.search(r'^name = "([^"]+)"', self.manifest, re.MULTILINE)
        assert found, f"{self.folder}/pyproject.toml has no name"
        return found.group(1)

    @cached_property
    def import_name(self) -> str:
        """The dotted name of the topmost importable package under `src`, for example `quanto` or `optimum.quanto`."""
        src = self.folder / "src"
        inits = sorted(src.rglob("__init__.py"), key=lambda path: (len(path.parts), path))
        assert inits, f"{src} holds no package"
        return ".".join(inits[0].parent.relative_to(src).parts)

    def sources(self) -> list[Path]:
        """Every Python file that the distribution ships."""
        return sorted(files(".py", self.folder / "src"))


def packages(*roles: str) -> list[Package]:
    """The packages of the given roles, or all of them, core first."""
    manifests = [ROOT / "packages" / "core" / "pyproject.toml"]
    manifests += sorted(ROOT.glob("packages/backends/*/pyproject.toml"))
    manifests += sorted(ROOT.glob("packages/integrations/*/pyproject.toml"))
    found = [Package(path.parent) for path in manifests]
    return [package for package in found if not roles or package.role in roles]


def files(suffix: str, folder: Path = ROOT) -> Iterator[Path]:
    """Files of the tree with that suffix, outside the folders that tools write."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _tracked(name))
        for name in sorted(names):
            if name.endswith(suffix):
                yield Path(parent, name)


def _tracked(name: str) -> bool:
    if name.startswith("."):
        return name in TRACKED_HIDDEN
    return name not in UNTRACKED and not name.endswith(".egg-info")


def documents() -> list[Path]:
    """The documents a reader follows: the root's, everything in `docs/`, and each package's README."""
    names = ("README.md", "CONTRIBUTING.md")
    found = [ROOT / name for name in names if (ROOT / name).exists()]
    found += sorted(files(".md", ROOT / "docs"))
    found += [package.folder / "README.md" for package in packages() if (package.folder / "README.md").exists()]
    return found


def shown(path: Path) -> str:
    """The path as messages name it, relative to the root."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()
