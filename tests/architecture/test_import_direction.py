# SPDX-License-Identifier: Apache-2.0
"""integrations → core ← backends, read from the imports; and the rules themselves, on sources that break them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from rules import forbidden_imports, forbidden_names, foreign_imports, star_imports, vendor_names
from tree import ROOT, Package, files, packages, shown

CORE = packages("core")[0]
BACKENDS = packages("backend")
INTEGRATIONS = packages("integration")


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _requirements(package: Package, heading: str) -> dict[str, set[str]]:
    """Import names by key of one table or list of `pyproject.toml`; here they equal the names on the index."""
    section = re.search(rf"^\[project\.{heading}\]\n(.*?)(?=^\[|\Z)", package.manifest, re.MULTILINE | re.DOTALL)
    lists = re.findall(r"^([\w-]+) = \[(.*?)\]$", section.group(1) if section else "", re.MULTILINE | re.DOTALL)
    return {key: _names(body) for key, body in lists}


def _names(body: str) -> set[str]:
    return {name.replace("-", "_") for name in re.findall(r'"([A-Za-z][\w-]*)', body)}


def _violations(package: Package, rule, *arguments) -> list[str]:
    return [f"{shown(path)} {text}" for path in package.sources() for text in rule(_parse(path), *arguments)]


def test_core_imports_only_what_it_declares() -> None:
    """An extra is named after the subpackage that needs it; elsewhere it is imported inside functions only."""
    listed = re.search(r"^dependencies = \[(.*?)^\]", CORE.manifest, re.MULTILINE | re.DOTALL)
    assert listed
    declared = _names(listed.group(1))
    assert "torch" in declared
    extras = _requirements(CORE, "optional-dependencies")
    assert {"cli", "testing"} <= set(extras)
    lazy = set().union(*extras.values())
    found = []
    for path in CORE.sources():
        subpackage = path.relative_to(CORE.folder / "src").parts[1:2]  # none: a module beside the package
        allowed = declared.union(*(extras.get(name, set()) for name in subpackage))
        found += [f"{shown(path)} {text}" for text in foreign_imports(_parse(path), "quanto", allowed, lazy)]
    assert not found, "\n".join(found)


def test_core_names_no_device_vendor() -> None:
    assert not (found := _violations(CORE, vendor_names)), "\n".join(found)


def test_core_knows_neither_backends_nor_integrations() -> None:
    others = [package.import_name for package in (*BACKENDS, *INTEGRATIONS)]
    forbidden = ["accelerate", "diffusers", "optimum", "peft", "transformers", "triton", *others]
    assert not (found := _violations(CORE, forbidden_imports, forbidden)), "\n".join(found)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda package: package.distribution)
def test_backends_see_plain_tensors(backend: Package) -> None:
    """A backend never sees a QTensor, and knows no other backend and no integration."""
    others = [package.import_name for package in (*BACKENDS, *INTEGRATIONS) if package != backend]
    forbidden = ["diffusers", "optimum", "quanto.nn", "quanto.tensor", "transformers", *others]
    found = _violations(backend, forbidden_imports, forbidden) + _violations(backend, forbidden_names, ["QTensor"])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("integration", INTEGRATIONS, ids=lambda package: package.distribution)
def test_integrations_know_no_backend(integration: Package) -> None:
    others = [package.import_name for package in BACKENDS]
    assert not (found := _violations(integration, forbidden_imports, others)), "\n".join(found)


def test_no_star_imports() -> None:
    found = [f"{shown(path)} {text}" for path in files(".py", ROOT) for text in star_imports(_parse(path))]
    assert not found, "\n".join(found)


BROKEN = [
    (star_imports, (), "from quanto import *"),
    (foreign_imports, ("quanto", {"torch"}, {"rich"}), "import numpy"),
    (foreign_imports, ("quanto", {"torch"}, {"rich"}), "import rich.progress"),
    (foreign_imports, ("quanto", {"torch"}, {"rich"}), "try:\n    import rich\nexcept ImportError:\n    rich = None"),
    (foreign_imports, ("quanto", {"torch"}, {"rich"}), "def f():\n    import quanto_backend_cpu"),
    (forbidden_imports, (["quanto.tensor"],), "def f():\n    from quanto.tensor.qtensor import QTensor"),
    (forbidden_imports, (["quanto.tensor"],), "from quanto import tensor"),
    (forbidden_names, (["QTensor"],), "import quanto\nquanto.QTensor"),
    (forbidden_names, (["QTensor"],), "from quanto import QTensor as Q"),
    (vendor_names, (), "import torch\nif torch.cuda.is_available(): pass"),
    (vendor_names, (), "import torch\ntorch.backends.mps.is_available()"),
    (vendor_names, (), "import torch.cuda"),
    (vendor_names, (), "from torch import xpu"),
    (vendor_names, (), "from torch.backends import cudnn"),
    (vendor_names, (), "import torch\ntorch.version.hip"),
    (vendor_names, (), "def f(x):\n    return x.is_cuda"),
]


@pytest.mark.parametrize(("rule", "arguments", "source"), BROKEN)
def test_each_rule_finds_what_breaks_it(rule, arguments, source) -> None:
    assert list(rule(ast.parse(source), *arguments))


ALLOWED = [
    (foreign_imports, ("quanto", {"torch"}, {"rich"}), "import json\nimport torch.nn\nfrom quanto import qtypes"),
    (foreign_imports, ("quanto", {"torch"}, {"rich"}), "from .tensor import QTensor\ndef f():\n    import rich"),
    (foreign_imports, ("quanto", {"torch"}, {"rich"}), "if TYPE_CHECKING:\n    from rich.progress import Progress"),
    (forbidden_imports, (["quanto.tensor"],), "from quanto import tensors, packing"),
    (vendor_names, (), "import torch\ntorch.accelerator.is_available()\ndevice = 'cuda'\nmps = 1\nself.mps"),
]


@pytest.mark.parametrize(("rule", "arguments", "source"), ALLOWED)
def test_no_rule_finds_what_is_allowed(rule, arguments, source) -> None:
    assert not list(rule(ast.parse(source), *arguments))
