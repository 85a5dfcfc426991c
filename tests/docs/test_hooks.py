# SPDX-License-Identifier: Apache-2.0
"""Every hook is documented with its exact arguments, and tested."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from blocks import blocks
from quanto.plugins import API_VERSION, hookspecs
from tree import ROOT, documents, files, shown

DOCUMENT = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
HOOKS: dict[str, Callable[..., Any]] = {
    name: function for name, function in vars(hookspecs).items() if hasattr(function, "quanto_spec")
}
EACH = pytest.mark.parametrize("name", HOOKS)


def test_the_hooks_are_found() -> None:
    assert {"register_qtypes", "register_kernels"} <= HOOKS.keys()
    assert all(name.startswith("register_") for name in HOOKS)


@EACH
def test_it_is_documented_with_its_exact_arguments(name: str) -> None:
    """A heading with the signature as in hookspecs.py, without the result, which is None for all."""
    signature = inspect.signature(HOOKS[name])
    assert signature.return_annotation == "None"
    arguments = ", ".join(f"{p.name}: {p.annotation}" for p in signature.parameters.values())
    assert f"\n## {name}({arguments})\n" in DOCUMENT


def test_none_is_documented_that_does_not_exist() -> None:
    assert sorted(re.findall(r"^## (register_\w+)", DOCUMENT, re.MULTILINE)) == sorted(HOOKS)


@EACH
def test_it_has_an_example_that_is_run(name: str) -> None:
    section = DOCUMENT.split(f"\n## {name}(")[1].split("\n## ")[0]
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    examples = [block for block in blocks(section) if block.language == "python" and block.skip is None]
    assert any(f"@hookimpl\ndef {name}({arguments}):\n" in block.code for block in examples)
    assert re.search(rf"^{name}\(", DOCUMENT, re.MULTILINE), "the document calls it"


@EACH
def test_it_has_a_test(name: str) -> None:
    """One whose name contains the hook's, in core or among the plugins."""
    folders = (ROOT / "packages" / "core" / "tests", ROOT / "tests" / "plugins")
    sources = [path.read_text(encoding="utf-8") for folder in folders for path in files(".py", folder)]
    assert any(re.search(rf"^\s*def test_\w*{name}", source, re.MULTILINE) for source in sources)


@pytest.mark.parametrize("document", documents(), ids=shown)
def test_examples_declare_the_present_api(document: Any) -> None:
    declared = re.findall(r"^QUANTO_API = (\d+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(declared) <= {str(API_VERSION)}


def test_the_present_api_is_documented() -> None:
    assert f"`quanto.plugins.API_VERSION`, now {API_VERSION}." in DOCUMENT
