# SPDX-License-Identifier: Apache-2.0
"""docs/api.md names every public name of `quanto`, nothing that is not there, and arguments that functions have."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re

import pytest

import quanto
from tree import ROOT

TEXT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`quanto\.(\w+)", TEXT)))
CALLS = re.findall(r"`quanto\.(\w+)\(([^`)]*)\)", TEXT)


@pytest.mark.parametrize("name", quanto.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in NAMED


@pytest.mark.parametrize("name", NAMED)
def test_nothing_else_is(name: str) -> None:
    assert name in quanto.__all__ or importlib.util.find_spec(f"quanto.{name}") is not None


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[name for name, _ in CALLS])
def test_arguments_exist(name: str, arguments: str) -> None:
    known = inspect.signature(getattr(quanto, name)).parameters
    given = {a.strip().lstrip("*").split("=")[0] for a in arguments.split(",")} - {"", "…", "options"}
    assert given <= known.keys() | {"batches"}, "batches are data of any name"


def test_every_field_of_a_scheme_is_there() -> None:
    row = next(line for line in TEXT.splitlines() if line.startswith("| `quanto.Scheme`"))
    assert set(re.findall(r"`(\w+)`", row)) == {field.name for field in dataclasses.fields(quanto.Scheme)}
