# SPDX-License-Identifier: Apache-2.0
"""Broken plugins: quanto imports, a model is quantized and right, and each is reported once, with its reason."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

# What each must be reported with.
REASONS = {
    "crash": "KeyError: 'a bug'",
    "exit": "SystemExit: usage: exit FILE",
    "import-error": "ModuleNotFoundError: No module named 'a_library_that_nobody_has'",
    "no-version": "it declares no QUANTO_API",
    "too-new": "it was written for API 999, this quanto-core has API 1; upgrade quanto-core",
    "too-old": "it was written for API 0, this quanto-core has API 1; upgrade the plugin",
    "typo": "unknown hook 'register_kernel'",
    "int6-fork": "kernels 'int6-fork.linear' (quanto-int6-fork) and 'int6.quarters' (quanto-int6) claim the same",
}

# Two models, each run several times; what is left over of the failed plugins.
USE = """
from quanto.quantizers import quantizers

found["silent"] = list(noted), list(plugins.records)
x = torch.randn(5, 64)
for qtype in ("nf4", "int6"):
    model = torch.nn.Linear(64, 48)
    with torch.no_grad():
        model.bias += 10
        expected = model(x)
        quanto.freeze(quanto.quantize(model, qtype))
        found[f"{qtype} before"] = quanto.explain(model).layers[0].kernel
        worst = max(float((model(x[:n]) - expected[:n]).abs().max()) for n in (1, 5, 5))
        layer = quanto.explain(model).layers[0]
    found[qtype] = {"kernel": layer.kernel, "error": worst, "refused": dict(layer.refused)}
found["left over"] = sorted({"broken"} & set(quanto.qtypes) | {"fork-absmax"} & set(quantizers))
quanto.quantize(torch.nn.Linear(8, 8), "int4")
"""


@pytest.fixture(scope="module")
def used(bad: Any) -> dict[str, Any]:
    """What a process found in which every plugin is installed."""
    return bad.find(USE)  # type: ignore[no-any-return]


def test_importing_quanto_neither_loads_nor_reports(used: dict[str, Any]) -> None:
    assert used["silent"] == [[], []]


@pytest.mark.parametrize("name", REASONS)
def test_each_is_recorded_with_its_reason(used: dict[str, Any], name: str) -> None:
    record = used["plugins"][name]
    assert record["status"] == "failed"
    assert REASONS[name] in record["reason"]
    assert "Traceback" in record["detail"]


@pytest.mark.parametrize("name", REASONS)
def test_each_is_warned_of_once(used: dict[str, Any], name: str) -> None:
    (warning,) = [text for text in used["warnings"] if f"the plugin {name!r}" in text]
    assert REASONS[name] in warning
    assert f"QUANTO_PLUGINS=-{name}" in warning


def test_the_others_are_loaded(used: dict[str, Any]) -> None:
    assert {name for name, record in used["plugins"].items() if record["status"] == "loaded"} == {"int6", "liar"}


def test_nothing_of_a_failed_plugin_remains(used: dict[str, Any]) -> None:
    assert used["left over"] == []


def test_a_model_is_quantized_and_right(used: dict[str, Any]) -> None:
    """Within what rounding to 4 or 6 bits may cost; the bias of 10 that the liar drops would be seen."""
    assert used["nf4"]["error"] < 0.5
    assert used["int6"]["error"] < 0.1
    assert used["int6"]["kernel"] == "int6.quarters"


def test_a_lying_kernel_is_replaced_and_reported_once(used: dict[str, Any]) -> None:
    assert used["nf4 before"] == "liar.linear"
    assert used["nf4"]["kernel"] == "reference.linear"
    assert "failed its self check: element" in used["nf4"]["refused"]["liar.linear"]
    (warning,) = [text for text in used["warnings"] if "liar" in text]
    assert "kernel 'liar.linear' of quanto-liar is replaced by the next best" in warning
    assert "QUANTO_KERNELS=-liar.linear" in warning


def test_nothing_else_is_warned_of(used: dict[str, Any]) -> None:
    assert len(used["warnings"]) == len(REASONS) + 1


def test_blocking_each_by_name_silences_all(bad: Any) -> None:
    plugins = ",".join(f"-{name}" for name in REASONS)
    quiet = bad.find(USE, QUANTO_PLUGINS=plugins, QUANTO_KERNELS="-liar.linear")
    assert quiet["warnings"] == []
    assert {quiet["plugins"][name]["status"] for name in REASONS} == {"blocked"}
    assert quiet["nf4"]["error"] < 0.5
    assert quiet["nf4"]["refused"] == {"liar.linear": "blocked by QUANTO_KERNELS or quanto.kernels.select"}


def test_of_two_in_conflict_the_user_chooses(bad: Any) -> None:
    chosen = bad.find(USE, QUANTO_PLUGINS="int6-fork,liar")
    assert chosen["plugins"]["int6-fork"]["status"] == "loaded"
    assert chosen["plugins"]["int6"]["status"] == "blocked"
    assert chosen["left over"] == ["fork-absmax"]


def test_info_shows_them(bad: Any) -> None:
    printed = bad.run(bad.scripts / "quanto", "info", PYTHONWARNINGS="ignore")
    lines = {line.split()[0]: line for line in printed.splitlines() if line.split()}
    for name in REASONS:
        assert "failed" in lines[name], printed


def test_the_conformance_suite_finds_the_lie(bad: Any) -> None:
    suite = "-m pytest -q -p no:cacheprovider --pyargs quanto.testing -k adds_a_large_bias --backend quanto-liar"
    command, folder = [str(bad.environment.python), *suite.split()], bad.environment.folder
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "liar.linear (quanto-liar) fails adds_a_large_bias" in done.stdout
