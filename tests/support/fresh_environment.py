# SPDX-License-Identifier: Apache-2.0
"""A new virtual environment that is lent third-party distributions, so that it costs seconds and no download.

What is under test (the packages of this repository, a plugin) is installed from its wheel. What it requires from
others, torch above all, is lent: symbolic links to exactly those distributions that the wheels' metadata declares,
with their requirements, taken from the running environment. Installing torch afresh would take most of a minute and a
gigabyte for each environment; a path to the whole running environment would hide a requirement that a wheel forgot to
declare.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def wheel_metadata(wheel: Path) -> metadata.PackageMetadata:
    """The METADATA of a wheel file."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode("utf-8"))


def _needed(requirements: Iterable[str], extras: Iterable[str]) -> list[Requirement]:
    """The requirements whose markers hold here, for any of the extras."""
    parsed = [Requirement(text) for text in requirements]
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [r for r in parsed if r.marker is None or any(r.marker.evaluate(e) for e in environments)]


def closure(requirements: Iterable[Requirement], without: Iterable[str] = ()) -> list[metadata.Distribution]:
    """Installed distributions that satisfy the requirements and theirs in turn; `without` names some to leave out.

    Raises:
        metadata.PackageNotFoundError: a requirement is not installed in the running environment.
    """
    left_out = {canonicalize_name(name) for name in without}
    queue, seen, found = list(requirements), set(), {}
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if name in left_out or key in seen:
            continue
        seen.add(key)
        found[name] = distribution = metadata.distribution(name)
        queue += _needed(distribution.requires or (), requirement.extras)
    return list(found.values())


class FreshEnvironment:
    """A virtual environment made for one test.

    Attributes:
        folder: where it lies.
        scripts: where its commands lie.
        purelib: its `site-packages`.
        python: its interpreter.
    """

    def __init__(self, folder: Path) -> None:
        venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
        self.folder = folder
        # Python 3.10 does not name the scheme of virtual environments.
        default = "nt" if os.name == "nt" else "posix_prefix"
        scheme = "venv" if "venv" in sysconfig.get_scheme_names() else default
        paths = sysconfig.get_paths(scheme, vars={"base": str(folder), "platbase": str(folder)})
        self.scripts, self.purelib = Path(paths["scripts"]), Path(paths["purelib"])
        self.python = self.scripts / "python"

    def lend(self, distributions: Iterable[metadata.Distribution]) -> None:
        """Link installed distributions, with their metadata, into this environment."""
        for distribution in distributions:
            assert distribution.files, f"{distribution.name} does not list its files"
            for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
                link = self.purelib / top
                if not link.exists():
                    link.symlink_to(Path(str(distribution.locate_file(top))).resolve())

    def install(self, *wheels: Path, extras: Iterable[str] = ()) -> None:
        """Install wheels, each with those of the extras that it has, and lend what they require from others."""
        parts = [wheel_metadata(wheel) for wheel in wheels]
        required = [r for part in parts for r in _needed(part.get_all("Requires-Dist", []), extras)]
        present = [*(part["Name"] for part in parts), *self._installed()]
        self.lend(closure(required, without=present))
        wanted = ",".join(extras)
        targets = [f"{wheel}[{wanted}]" if wanted else str(wheel) for wheel in wheels]
        # Neither an index nor the user's configuration of pip may complete a forgotten requirement.
        self.pip("install", "--quiet", "--isolated", "--no-index", *targets)
        self.pip("check")

    def _installed(self) -> list[str]:
        listed = self.pip("list", "--format=freeze").splitlines()
        return [line.split("==")[0] for line in listed if "==" in line]

    def pip(self, *arguments: str) -> str:
        """Run the running environment's pip on this environment."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        return self._run(command, {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})

    def run(self, *arguments: str | Path, **environment: str) -> str:
        """Run this environment's interpreter, or one of its scripts if the first argument is its path.

        Returns:
            What was printed, standard error included.

        Raises:
            AssertionError: the exit status was not 0; the message holds what was printed.
        """
        command = [str(argument) for argument in arguments]
        if Path(command[0]).parent != self.scripts:
            command = [str(self.python), *command]
        return self._run(command, environment)

    def _run(self, command: list[str], environment: dict[str, str]) -> str:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV_", "QUANTO_"))}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout
