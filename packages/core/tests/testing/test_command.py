# SPDX-License-Identifier: Apache-2.0
"""`pytest --pyargs quanto.testing`, as a kernel author runs it, in a folder of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Registers a kernel as a plugin would, then runs pytest, which finds the options by the entry point of quanto-core.
PROGRAM = """
import sys
import pytest, torch, quanto
from quanto.kernels import KernelSpec, kernels
from quanto.plugins import plugins

def linear(x, codes, scale, zero, shared, bias, qtype, block):
    return torch.ops.quanto_core.linear(x, codes, scale, zero, shared, {bias}, qtype, block)

plugins.load()
with kernels.transaction("mine"):
    kernels.register(KernelSpec("mine.linear", "linear", "cpu", linear, {{"nf4"}}, dtypes={{torch.float32}}))
sys.exit(pytest.main(["--pyargs", "quanto.testing", *sys.argv[1:]]))
"""


def run(folder: Path, *arguments: str, bias: str = "bias") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(bias=bias), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_a_right_kernel_succeeds(tmp_path: Path) -> None:
    done = run(tmp_path, "--backend", "mine", "-v", "-k", "group")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels: mine.linear (mine)" in done.stdout
    assert "mine.linear nf4 group float32 on cpu: agrees_elementwise" in done.stdout
    assert "torch." not in done.stdout.split("collected")[1], "no other kernel than the named one"


def test_a_wrong_kernel_fails_in_few_words(tmp_path: Path) -> None:
    done = run(tmp_path, "--backend", "mine.linear", "-k", "adds_a_large_bias", bias="None")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "mine.linear (mine) fails adds_a_large_bias" in done.stdout
    assert "the reference has" in done.stdout
    assert "exception" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--backend", "nobody"), "no kernel and no distribution 'nobody'; known: mine, mine.linear, quanto-core"),
        (("--backend", "mine", "--device", "abacus"), "no kernel to test on abacus"),
    ],
)
def test_a_wrong_name_is_one_line(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert sentence in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_other_runs_of_pytest_are_left_alone(tmp_path: Path) -> None:
    """The entry point is imported in every pytest of every user: it must cost nothing and claim no option."""
    (tmp_path / "test_mine.py").write_text("import sys\ndef test(): assert 'torch' not in sys.modules\n")
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device')\n")
    command = [sys.executable, "-m", "pytest", "--device", "x", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
