# SPDX-License-Identifier: Apache-2.0
"""The command as the shell starts it; and without the packages of the extra `cli`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import quanto
import quanto.cli

needs_extra = pytest.mark.skipif(find_spec("typer") is None or find_spec("rich") is None, reason="needs the extra cli")
posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes as POSIX has them")

GOOD = """
import time
from quanto.plugins import hookimpl

QUANTO_API = 1
print("noise at import")

@hookimpl
def register_commands(app):
    @app.command()
    def wait():
        print("waiting", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two distributions on the path: one brings two plugins, the other one that can't be imported."""
    _distribution(tmp_path, "good", "1.0", one=GOOD, two="QUANTO_API = 1")
    _distribution(tmp_path, "broken", "0.1", three="import a_library_that_is_missing")
    return tmp_path


def _distribution(folder: Path, name: str, version: str, **plugins: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[quanto]\n" + "".join(f"{p} = plugin_{p}\n" for p in plugins))
    for plugin, source in plugins.items():
        (folder / f"plugin_{plugin}.py").write_text(source)


def hear_interrupts() -> None:
    """A shell starts jobs in the background deaf to interrupts, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    source = Path(quanto.__file__).parents[1]
    path = os.pathsep.join([str(folder), str(source)])
    # Unbuffered output would fail where it is written, and hide what happens when the rest is flushed at exit.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUANTO_") and k != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "quanto.cli", *arguments]
    pipe = subprocess.PIPE
    environment |= {"PYTHONPATH": path}
    hear = hear_interrupts if os.name == "posix" else None
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder, preexec_fn=hear)


@needs_extra
def test_broken_plugins_do_not_harm_the_output(folder: Path) -> None:
    process = start(folder, "info", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert {p["name"]: p["status"] for p in found["plugins"]} == {"one": "loaded", "two": "loaded", "three": "failed"}
    assert found["versions"]["good"] == "1.0"
    assert "a_library_that_is_missing" in next(p for p in found["plugins"] if p["name"] == "three")["detail"]
    noise, warning = err.splitlines()
    assert noise == "noise at import"
    assert warning.startswith("quanto: warning: the plugin 'three' of broken 0.1 was left out: ModuleNotFoundError")


@needs_extra
@posix
def test_an_interrupt_ends_quietly(folder: Path) -> None:
    process = start(folder, "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err


@needs_extra
@posix
@pytest.mark.parametrize("arguments", [["info"], ["--version"]])
def test_a_closed_pipe_is_silent(tmp_path: Path, arguments: list[str]) -> None:
    process = start(tmp_path, *arguments)
    assert process.stdout is not None
    process.stdout.close()  # before anything is written: torch alone takes a second
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 1


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]
    assert quanto.cli.main(["info"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert 'pip install "quanto-core[cli]"' in err


def test_importing_the_package_needs_nothing_of_the_extra() -> None:
    program = "import sys; sys.modules['typer'] = sys.modules['rich'] = None; import quanto.cli; print(quanto.cli.main)"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)


def test_quanto_does_not_import_its_command_line() -> None:
    program = "import sys, quanto; quanto.plugins.plugins.load(); print('quanto.cli' in sys.modules)"
    done: Any = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False"
