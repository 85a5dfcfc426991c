# SPDX-License-Identifier: Apache-2.0
"""Every package has the same anatomy, and torch is pinned in one place."""

from __future__ import annotations

import re

import pytest

from tree import ROOT, Package, files, packages, shown

PACKAGES = pytest.mark.parametrize("package", packages(), ids=lambda package: package.distribution)


@PACKAGES
def test_anatomy(package: Package) -> None:
    folder = package.folder
    assert (folder / "README.md").read_text(encoding="utf-8").startswith(f"# {package.distribution}\n")
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert list((folder / "tests").rglob("test_*.py")), "no tests"
    marker = folder / "src" / package.import_name.replace(".", "/") / "py.typed"
    assert marker.is_file(), f"{shown(marker)} is missing, so type checkers would ignore the annotations"


@PACKAGES
def test_manifest(package: Package) -> None:
    for line in ('requires-python = ">=3.10"', 'license = "Apache-2.0"', 'license-files = ["LICENSE"]'):
        assert f"\n{line}\n" in package.manifest
    if package.role != "core":
        assert '"quanto-core' in package.manifest


@PACKAGES
def test_packages_declare_ranges(package: Package) -> None:
    """A pin in a library makes it uninstallable beside another library that pins."""
    assert not re.findall(r'"[\w\[\],.-]+\s*==[^"]*"', package.manifest)


def test_torch_is_pinned_once() -> None:
    pins = []
    for suffix in (".py", ".toml", ".txt", ".md", ".yml", "run"):
        for path in files(suffix):
            pins += [shown(path) for _ in re.findall(r"\btorch==\d", path.read_text(encoding="utf-8"))]
    assert pins == ["constraints.txt"]
