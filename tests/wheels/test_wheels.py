# SPDX-License-Identifier: Apache-2.0
"""What a user gets: a wheel holds its package and nothing else, and works in an environment made from wheels alone."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest

from fresh_environment import FreshEnvironment, wheel_metadata
from tree import ROOT, Package, packages

PACKAGES = packages()
EACH = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.distribution)

# Compiled parts that a backend ships beside its Python files.
BUILT = (".so", ".dylib", ".pyd")


def _tables(package: Package, kind: str) -> dict[str, str]:
    """`name = "module:object"` lines of one table of the manifest."""
    section = re.search(rf"^\[project\.{kind}\]\n(.*?)(?=^\[|\Z)", package.manifest, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r'^"?([\w.-]+)"? = "([^"]+)"', section.group(1), re.MULTILINE)) if section else {}


def _declared() -> set[tuple[str, str, str]]:
    """Every (group, name, target) that the manifests of this repository declare."""
    groups = {"console_scripts": "scripts", "quanto": r"entry-points\.quanto"}
    return {
        (group, name, target)
        for package in PACKAGES
        for group, kind in groups.items()
        for name, target in _tables(package, kind).items()
    }


@EACH
def test_holds_its_package_and_licence_only(package: Package, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[package.distribution]) as archive:
        names = set(archive.namelist())
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert f"{info}/licenses/LICENSE" in names
    inside = {name for name in names if not name.startswith(f"{info}/")}
    src = package.folder / "src"
    expected = {
        path.relative_to(src).as_posix()
        for path in src.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in BUILT
    }
    assert {name for name in inside if not name.endswith(BUILT)} == expected
    assert f"{package.import_name.replace('.', '/')}/py.typed" in inside


@EACH
def test_serves_every_python(package: Package, wheels: dict[str, Path]) -> None:
    """One wheel for each platform, not one for each Python besides; for any platform where nothing is compiled."""
    wheel = wheels[package.distribution]
    *_, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none")
    with zipfile.ZipFile(wheel) as archive:
        assert (platform == "any") != any(name.endswith(BUILT) for name in archive.namelist())


@EACH
def test_metadata(package: Package, wheels: dict[str, Path]) -> None:
    found = wheel_metadata(wheels[package.distribution])
    assert found["Name"] == package.distribution
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.10"
    assert found["Description-Content-Type"] == "text/markdown"


def test_core_installs_alone(wheels: dict[str, Path], fresh_environment: FreshEnvironment) -> None:
    """Without extras: the import needs nothing that only an extra brings."""
    fresh_environment.install(wheels["quanto-core"])
    found = fresh_environment.run("-c", "import quanto, sys; print(quanto.__file__); print('rich' in sys.modules)")
    where, rich = found.split()[-2:]
    assert Path(where).is_relative_to(fresh_environment.folder)
    assert rich == "False"
    listed = fresh_environment.pip("list", "--format=freeze").lower()
    assert "typer" not in listed
    assert "hypothesis" not in listed


PROBE = """
import importlib, importlib.metadata, json, sys
modules = {name: importlib.import_module(name).__file__ for name in sys.argv[1:]}
points = importlib.metadata.entry_points()
print(json.dumps({
    "modules": modules,
    "points": [(p.group, p.name, p.value) for g in ("console_scripts", "quanto") for p in points.select(group=g)],
    "loaded": [p.name for p in points.select(group="quanto") if p.load()],
}))
"""


def test_all_work_together(wheels: dict[str, Path], fresh_environment: FreshEnvironment) -> None:
    """Every wheel installed side by side: all import from there, and every command and plugin is found."""
    fresh_environment.install(*wheels.values(), extras=["cli"])
    names = [package.import_name for package in PACKAGES]
    found = json.loads(fresh_environment.run("-c", PROBE, *names).splitlines()[-1])
    assert all(Path(file).is_relative_to(fresh_environment.folder) for file in found["modules"].values())
    assert not any(Path(file).is_relative_to(ROOT) for file in found["modules"].values())
    declared = _declared()
    assert ("console_scripts", "quanto", "quanto.cli:main") in declared
    assert declared <= {tuple(point) for point in found["points"]}
    plugins = {name for group, name, _ in declared if group == "quanto"}
    assert plugins <= set(found["loaded"])
    info = fresh_environment.run(fresh_environment.scripts / "quanto", "info")
    assert all(name in info for name in plugins), info


def test_a_forgotten_requirement_is_noticed(fresh_environment: FreshEnvironment, tmp_path: Path) -> None:
    """The environment lends nothing that is not declared: this is what makes the tests above mean something."""
    wheel = tmp_path / "forgetful-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("forgetful.py", "import pluggy\n")
        info = "forgetful-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: forgetful\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    fresh_environment.install(wheel)
    with pytest.raises(AssertionError, match="No module named 'pluggy'"):
        fresh_environment.run("-c", "import forgetful")
