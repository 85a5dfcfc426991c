# SPDX-License-Identifier: Apache-2.0
"""diffusers finds quanto without an import by the user, in whatever order things are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = """
from diffusers.quantizers import auto
print(auto.AUTO_QUANTIZER_MAPPING['quanto'].__module__, auto.AUTO_QUANTIZATION_CONFIG_MAPPING['quanto'].__module__)
"""
OURS = "quanto_diffusers.quantizer quanto_diffusers.config"


def python(code: str, **env: str) -> str:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first",
    ["from diffusers import QuantoConfig", "from quanto_diffusers.quantizer import QuantoQuantizer"],
)
def test_in_every_order(first: str) -> None:
    code = f"{first}{SHOW}from diffusers import QuantoConfig; print(QuantoConfig('int8').weights)"
    assert python(code) == f"{OURS}\nint8"


def test_can_be_turned_off() -> None:
    assert python(f"import torch{SHOW}", QUANTO_AUTOLOAD="0").startswith("diffusers.quantizers.quanto")


def test_costs_nothing_until_it_is_needed() -> None:
    code = "import quanto_diffusers, sys; print([m for m in ('torch', 'diffusers', 'quanto') if m in sys.modules])"
    assert python(code) == "[]"
