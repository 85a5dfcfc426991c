# SPDX-License-Identifier: Apache-2.0
"""`quanto info`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

import quanto
from quanto.cli.app import make_app
from quanto.cli.info import kept, tables
from quanto.cli.report import Device, Report, Selection, TwinReport, collect
from quanto.plugins import PluginManager, PluginRecord

Make = Callable[..., PluginManager]


@pytest.fixture
def info(manager_with: Make) -> Callable[..., Any]:
    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(make_app(manager_with()), ["info", *arguments])

    quanto.plugins.plugins.load()
    return invoke


@pytest.fixture
def report() -> Report:
    return collect()


def plain(report: Report, details: bool = False) -> str:
    return "\n".join(table.plain() for table in tables(report, details))


def test_a_pipe_gets_plain_lines(info: Callable[..., Any]) -> None:
    result = info()
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert ["quanto-core", quanto.__version__] in [line.split() for line in lines]
    for spec in quanto.kernels.specs.values():
        (line,) = [line for line in lines if f" {spec.name} " in line]
        assert line.split()[0] == spec.op
        assert f" {spec.priority} " in line
    assert "\x1b" not in result.stdout


def test_json_is_one_object(info: Callable[..., Any]) -> None:
    result = info("--json")
    assert json.loads(result.stdout) == json.loads(json.dumps(collect().to_dict()))
    assert result.stderr == ""


def test_json_keeps_its_keys_when_kernels_are_chosen(info: Callable[..., Any]) -> None:
    found = json.loads(info("--json", "--kernel", "torch.*", "--op", "linear").stdout)
    assert {k["name"] for k in found["kernels"]} == {"torch.int8pack", "torch.int4pack"}
    assert set(found) == set(collect().to_dict())


def test_chosen_kernels_are_shown_alone(info: Callable[..., Any]) -> None:
    lines = info("--op", "embedding").stdout.splitlines()
    assert lines[0] == "kernels"
    assert [line.split()[1] for line in lines[2:]] == ["reference.embedding"]


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ({}, None),
        ({"kernel": "torch.int8pack"}, {"torch.int8pack"}),
        ({"kernel": "torch.int_mm.*", "device": "cpu"}, {"torch.int_mm.cpu"}),
        ({"op": "scaled_linear", "device": "cpu"}, {"torch.int_mm.cpu", "reference.scaled_linear"}),
        ({"op": "*embed*"}, {"reference.embedding"}),
    ],
)
def test_kernels_by_name_device_and_operator(report: Report, chosen: dict[str, str], names: set[str] | None) -> None:
    expected = tuple(k for k in report.kernels if names is None or k.name in names)
    assert kept(report.kernels, **chosen) == expected


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--op=lineal", "no kernel with the op 'lineal'; there are: quantize, dequantize"),
        ("--device=abacus", "no kernel with the device 'abacus'; there are: any, cpu"),
        ("--kernel=int8", "no kernel with the name 'int8'; there are: reference.quantize"),
    ],
)
def test_a_name_that_fits_nothing_is_an_error(info: Callable[..., Any], option: str, sentence: str) -> None:
    result = info(option)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"quanto: error: {sentence}")
    assert result.stderr.count("\n") == 1


def test_plugins_and_their_reasons(report: Report) -> None:
    records = (
        PluginRecord("good", "good-package 1.0", "loaded"),
        PluginRecord("late", "late-package 0.3", "failed", "ImportError: no\nlibrary", "Traceback …\nImportError: no"),
        PluginRecord("shy", "shy-package 2.0", "blocked", "left out by QUANTO_PLUGINS"),
    )
    report = replace(report, plugins=records)
    lines = [line.split() for line in plain(report).splitlines()]
    assert ["good", "good-package", "1.0", "loaded"] in lines
    assert ["late", "late-package", "0.3", "failed", "ImportError:", "no", "library"] in lines
    assert ["shy", "shy-package", "2.0", "blocked", "left", "out", "by", "QUANTO_PLUGINS"] in lines
    assert "Traceback" not in plain(report)
    assert "plugin late\nTraceback …\nImportError: no" in plain(report, details=True)
    assert "none installed" in plain(replace(report, plugins=()))


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        (Selection(None, (), (), ()), "not set"),
        (Selection("", (), (), ()), "set to nothing"),
        (Selection("a,-b,-c", ("a",), ("b", "c"), ("c",)), "forces a; blocks b, c; not installed: c"),
    ],
)
def test_what_the_environment_chooses(report: Report, selection: Selection, sentence: str) -> None:
    chosen = report.selection | {"QUANTO_KERNELS": selection}
    (line,) = [x for x in plain(replace(report, selection=chosen)).splitlines() if x.startswith("QUANTO_KERNELS")]
    assert line.split(maxsplit=1)[1] == sentence


@pytest.mark.parametrize(
    ("device", "text"),
    [
        (Device("cpu", 1, "", "AVX512"), "cpu (AVX512)"),
        (Device("abacus", 8, "Abacus 3000", "9.0"), "8 x abacus (Abacus 3000, 9.0)"),
        (Device("abacus", 1, "", ""), "abacus"),
    ],
)
def test_devices(report: Report, device: Device, text: str) -> None:
    assert f" {text}\n" in plain(replace(report, devices=(device,)))


def test_modules_say_when_they_are_quantized(report: Report) -> None:
    twins = (
        TwinReport("torch.nn.Linear", "QLinear", True, False),
        TwinReport("library.Conv1D", "QConv1D", False, False),
        TwinReport("torch.nn.LayerNorm", "QLayerNorm", True, True),
    )
    lines = [line.split() for line in plain(replace(report, modules=twins)).splitlines()]
    assert ["modules", "Linear"] in lines
    assert ["by", "rule", "or", "include", "library.Conv1D"] in lines
    assert ["with", "activations", "LayerNorm"] in lines
