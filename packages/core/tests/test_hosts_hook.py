# SPDX-License-Identifier: Apache-2.0
"""`_quanto_hosts`: an integration registers once the module it waits for is imported, whichever comes first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import _quanto_hosts

INSTALL = """
import sys
from _quanto_hosts import Host, install
install("an_integration", [Host("a_library.table", ("an_integration.quantizer",), "register")])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A library, and an integration in it."""
    (tmp_path / "a_library").mkdir()
    (tmp_path / "a_library" / "__init__.py").touch()
    (tmp_path / "a_library" / "table.py").write_text("TABLE = {}\n")
    (tmp_path / "an_integration").mkdir()
    (tmp_path / "an_integration" / "__init__.py").touch()
    (tmp_path / "an_integration" / "quantizer.py").write_text("import a_library.table\nNAME = 'ours'\n")
    registration = "def register():\n    from a_library.table import TABLE\n    from .quantizer import NAME\n"
    (tmp_path / "an_integration" / "registration.py").write_text(f"{registration}    TABLE['quanto'] = NAME\n")
    return tmp_path


def python(folder: Path, code: str) -> str:
    beside = str(Path(_quanto_hosts.__file__).parent)
    start = f"import sys; sys.path[:0] = [{str(folder)!r}, {beside!r}]\n"
    command = [sys.executable, "-S", "-c", start + code]  # without site: what is imported is what is said here
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = "from a_library.table import TABLE, __loader__\nprint(TABLE, type(__loader__).__name__)"
REGISTERED = "{'quanto': 'ours'} SourceFileLoader"


@pytest.mark.parametrize(
    "code",
    [
        INSTALL + SHOW,
        "import a_library.table" + INSTALL + SHOW,
        INSTALL + "import an_integration.quantizer\n" + SHOW,
        INSTALL * 2 + "assert len([f for f in sys.meta_path if type(f).__name__ == '_Finder']) == 1\n" + SHOW,
    ],
)
def test_registers_in_every_order(folder: Path, code: str) -> None:
    assert python(folder, code) == REGISTERED


def test_imports_only_the_standard_library(folder: Path) -> None:
    code = "import _quanto_hosts; print({m.partition('.')[0] for m in sys.modules} - {*sys.stdlib_module_names})"
    assert python(folder, code) in ("{'__main__', '_quanto_hosts'}", "{'_quanto_hosts', '__main__'}")


def test_what_fails_is_said_and_harmless(folder: Path) -> None:
    (folder / "an_integration" / "registration.py").write_text("raise KeyError('gone')")
    code = f"""
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {INSTALL.strip().replace(chr(10), chr(10) + "    ")}
    from a_library.table import TABLE
print(TABLE, *[w.message for w in caught])
"""
    assert python(folder, code).startswith("{} an-integration could not register with a_library.table: KeyError")
