# SPDX-License-Identifier: Apache-2.0
"""The plugin of a stranger, quanto-int6: installed, it is found, chosen, obeyed, blocked and saved with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

# Quantizes with everything the plugin brings, saves to the folder of the first argument, and reports.
QUANTIZE = """
import sys
from quanto.kernels import KernelSpec

def compare(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.square().mean().sqrt())

def kernel(model):
    return quanto.explain(model).layers[0].kernel

folder = sys.argv[1]
model = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
few, many = torch.randn(3, 256), torch.randn(70, 256)
floats = [model(few), model(many)]
quanto.freeze(quanto.quantize(model, "int6", group_size=64, algorithm="clip-mse"))
found["kernel"] = kernel(model)
with torch.no_grad():
    results = [model(few), model(many)]
    with quanto.kernels.select("reference.linear"):
        found["forced"] = kernel(model)
        expected = [model(few), model(many)]
    with quanto.kernels.select("-int6.quarters"):
        found["blocked"] = kernel(model)
    quanto.kernels.register(KernelSpec("rival", "linear", "cpu", torch.ops.quanto_core.linear.default, {"int6"},
                                       zero_points={"int"}, priority=300))
    found["outranked"] = kernel(model)
    with quanto.kernels.select("int6.quarters"):
        found["selected"] = kernel(model)
    with quanto.kernels.select("-rival"):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        found["compiled"] = compare(compiled(few), results[0])
found["errors"] = [compare(a, b) for a, b in zip(results, expected)]
found["distance"] = [compare(a, b) for a, b in zip(results, floats)]
found["bits"] = model[0].weight_packed.numel() * 8 / (256 * 64)
quanto.save(model, folder + "/int6")
torch.save({"few": few, "result": results[0]}, folder + "/expected.pt")
plain = torch.nn.Linear(256, 64)
quanto.save(quanto.freeze(quanto.quantize(plain, "int3", algorithm="clip-mse")), folder + "/int3")
torch.save({"few": few, "result": plain(few)}, folder + "/int3.pt")
"""

LOAD = """
import sys
folder = sys.argv[1]
try:
    model = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    quanto.load(folder + "/int6", model)
    saved = torch.load(folder + "/expected.pt")
    found["equal"] = torch.equal(model(saved["few"]), saved["result"])
    found["kernel"] = quanto.explain(model).layers[0].kernel
except ValueError as error:
    found["error"] = f"{type(error).__name__}: {error}"
    found["untouched"] = type(model[0]) is torch.nn.Linear
plain = quanto.load(folder + "/int3", torch.nn.Linear(256, 64))
saved = torch.load(folder + "/int3.pt")
found["int3"] = torch.equal(plain(saved["few"]), saved["result"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are saved."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def quantized(good: Any, folder: Path) -> dict[str, Any]:
    """What a process found that used the plugin in earnest."""
    return good.find(QUANTIZE, folder)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def info(good: Any) -> dict[str, Any]:
    """`quanto info --json`."""
    printed = good.run(good.scripts / "quanto", "info", "--json", PYTHONWARNINGS="ignore")
    return json.loads(printed)  # type: ignore[no-any-return]


def test_info_lists_the_plugin(info: dict[str, Any]) -> None:
    (record,) = [p for p in info["plugins"] if p["name"] == "int6"]
    assert record["distribution"] == "quanto-int6 0.3.1"
    assert record["status"] == "loaded"


def test_register_qtypes_adds_the_qtype(info: dict[str, Any], quantized: dict[str, Any]) -> None:
    assert {"name": "int6", "bits": 6}.items() <= {q["name"]: q for q in info["qtypes"]}["int6"].items()
    assert quantized["bits"] == 6


def test_register_quantizers_adds_the_quantizer(info: dict[str, Any]) -> None:
    assert "clip-mse" in info["quantizers"]


def test_register_kernels_adds_the_kernel(info: dict[str, Any]) -> None:
    kernel = {k["name"]: k for k in info["kernels"]}["int6.quarters"]
    assert kernel["origin"] == "quanto-int6"
    assert kernel["status"] == "ready"


def test_nothing_is_warned_of(quantized: dict[str, Any]) -> None:
    assert quantized["warnings"] == []


def test_its_kernel_is_chosen(quantized: dict[str, Any]) -> None:
    assert quantized["kernel"] == "int6.quarters"


def test_its_kernel_is_right(quantized: dict[str, Any]) -> None:
    """Few tokens and many, against the reference: 1e-5 of the results' root mean square; nearly the float model."""
    assert max(quantized["errors"]) < 1e-5
    assert quantized["compiled"] < 1e-5
    assert 0 < max(quantized["distance"]) < 0.15


def test_select_forces_and_blocks_it(quantized: dict[str, Any]) -> None:
    assert quantized["forced"] == "reference.linear"
    assert quantized["blocked"] == "reference.linear"
    assert quantized["outranked"] == "rival"
    assert quantized["selected"] == "int6.quarters"


def test_its_file_loads_in_another_process(quantized: dict[str, Any], good: Any, folder: Path) -> None:
    loaded = good.find(LOAD, folder)
    assert loaded["equal"]
    assert loaded["kernel"] == "int6.quarters"


def test_its_file_without_the_plugin_is_an_error_that_names_the_qtype(
    quantized: dict[str, Any], good: Any, folder: Path
) -> None:
    """Blocked by name, a plugin is as if it weren't there. What only its algorithm made needs no plugin to load."""
    without = good.find(LOAD, folder, QUANTO_PLUGINS="-int6")
    assert without["plugins"]["int6"]["status"] == "blocked"
    assert "QUANTO_PLUGINS" in without["plugins"]["int6"]["reason"]
    assert without["error"].startswith("FormatError: ")
    assert "quanto.json" in without["error"]
    assert "unknown qtype 'int6'" in without["error"]
    assert "plugins" in without["error"]
    assert without["untouched"]
    assert without["int3"]
    assert without["warnings"] == []


def test_its_kernel_is_blocked_by_name(quantized: dict[str, Any], good: Any, folder: Path) -> None:
    blocked = good.find(LOAD, folder, QUANTO_KERNELS="-int6.quarters")
    assert blocked["plugins"]["int6"]["status"] == "loaded"
    assert blocked["kernel"] == "reference.linear"
    assert blocked["warnings"] == []


# The mean squared error of the clipping quantizer over absmax's or min/max's, for weights of three kinds.
MEASURE = """
kinds = {
    "normal": torch.randn(64, 1024),
    "laplace": torch.distributions.Laplace(0.0, 1.0).sample((64, 1024)),
    "student": torch.distributions.StudentT(4.0).sample((64, 1024)),
}
for kind, x in kinds.items():
    for qtype, options in (("int4", {"group_size": 128}), ("int4", {"granularity": "channel"}),
                           ("int6", {"granularity": "channel"}), ("nf4", {"group_size": 64})):
        for symmetric in (True, None):
            plain, clipped = (
                (quanto.quantize_tensor(x, qtype, symmetric=symmetric, algorithm=algorithm, **options) - x).square()
                for algorithm in (None, "clip-mse")
            )
            blocks = (-1, options.get("group_size", 1024))
            name = f"{kind} {qtype} {next(iter(options))} {symmetric}"
            found[name] = float(clipped.mean() / plain.mean())
            worse = clipped.unflatten(1, blocks).sum(-1) > plain.unflatten(1, blocks).sum(-1) * (1 + 1e-5)
            found["worse"] = found.get("worse", 0) + int(worse.sum())
try:
    quanto.quantize_tensor(x, "mxfp4", algorithm="clip-mse")
except ValueError as error:
    found["error"] = str(error)
"""


def test_its_quantizer_beats_absmax_and_minmax(good: Any) -> None:
    ratios = good.find(MEASURE)
    assert ratios["worse"] == 0, "a block was clipped to its disadvantage"
    for kind in ("normal", "laplace", "student"):
        assert ratios[f"{kind} int4 group_size True"] < 0.87
        assert ratios[f"{kind} int4 group_size None"] < 0.93
        assert ratios[f"{kind} int4 granularity True"] < 0.70
        assert ratios[f"{kind} int4 granularity None"] < 0.78
        assert ratios[f"{kind} int6 granularity True"] < 0.95
        assert ratios[f"{kind} nf4 group_size None"] < 0.95
    assert "use 'absmax'" in ratios["error"]


def test_its_kernel_conforms(good: Any) -> None:
    suite = "-m pytest -p no:cacheprovider --pyargs quanto.testing --backend quanto-int6"
    printed = good.run(*suite.split(), OMP_NUM_THREADS="1")
    assert "kernels: int6.quarters (quanto-int6)" in printed
    assert " passed" in printed
    assert "skipped" not in printed
