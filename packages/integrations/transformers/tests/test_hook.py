# SPDX-License-Identifier: Apache-2.0
"""transformers finds quanto without an import by the user, in whatever order things are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

AUTO = "from transformers.quantizers import auto\n"
MODEL = "from transformers import AutoModelForCausalLM, LlamaForCausalLM, QuantoConfig\n"
SHOW = """print(auto.AUTO_QUANTIZER_MAPPING['quanto'].__module__,
      auto.AUTO_QUANTIZATION_CONFIG_MAPPING['quanto'].__module__)"""
OURS, STOCK = "quanto_transformers.quantizer quanto_transformers.config", "transformers.quantizers.quantizer_quanto"


def python(code: str, **env: str) -> str:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first",
    [
        "import torch",
        AUTO + "import transformers.modeling_utils",
        MODEL,
        "import quanto_transformers",
        "from quanto_transformers.quantizer import QuantoHfQuantizer",
    ],
)
def test_in_every_order(first: str) -> None:
    assert python(f"{first}\n{MODEL}{AUTO}{SHOW}") == OURS


@pytest.mark.parametrize("off", [{"QUANTO_AUTOLOAD": "0"}, {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}])
def test_can_be_turned_off_and_on_again(off: dict[str, str]) -> None:
    code = f"import torch\n{MODEL}{AUTO}{SHOW}\nimport quanto_transformers\n{SHOW}"
    before, after = python(code, **off).split("\n")
    assert before.startswith(STOCK)
    assert after == OURS


def test_costs_nothing_until_it_is_needed() -> None:
    code = (
        "import quanto_transformers, sys; print([m for m in ('torch', 'transformers', 'quanto') if m in sys.modules])"
    )
    assert python(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0") == "[]"
    assert python("import torch, sys; print('transformers' in sys.modules)") == "False"
    code = "import quanto, sys; quanto.nn.modules.find(quanto.nn.QLinear(1, 1)); print('transformers' in sys.modules)"
    assert python(code) == "False"


@pytest.mark.parametrize("broken", ["quanto_transformers.hook", "quanto_transformers"])
def test_a_broken_package_does_not_break_torch(broken: str) -> None:
    """As a half-removed or half-upgraded one is."""
    poison = f"""
import sys
class Poison:
    def find_spec(self, name, path=None, target=None):
        if name == {broken!r}:
            raise ImportError("gone")
sys.meta_path.insert(0, Poison())
import torch
print(torch.ones(1).item())
"""
    assert python(poison) == "1.0"


def test_what_fails_later_is_said_and_does_not_break_transformers() -> None:
    code = f"""
import sys, warnings
import torch
sys.modules["quanto_transformers.config"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {AUTO.strip()}
print(auto.AUTO_QUANTIZER_MAPPING["quanto"].__module__, [str(w.message)[:49] for w in caught])
"""
    assert python(code) == f"{STOCK} ['quanto-transformers could not register with trans']"


def test_registering_twice_changes_nothing() -> None:
    code = f"""
{AUTO}
import quanto_transformers
quanto_transformers.register()
before = dict(auto.AUTO_QUANTIZER_MAPPING), auto.LOADING_ATTRIBUTES_CONFIG_TYPES
quanto_transformers.register()
quanto_transformers.hook.install()
assert before == (auto.AUTO_QUANTIZER_MAPPING, auto.LOADING_ATTRIBUTES_CONFIG_TYPES)
{SHOW}
"""
    assert python(code) == OURS
