# SPDX-License-Identifier: Apache-2.0
"""The rules of the tree as functions of one parsed file: each returns its violations, as sentences with a line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass

# Device vendors as torch spells them. Core asks its registry of kernels instead of naming one.
VENDORS = {"cuda", "cudnn", "hip", "hpu", "mps", "mtia", "musa", "npu", "xpu"}


@dataclass(frozen=True)
class Import:
    """One imported module, with what was taken from it."""

    module: str
    names: tuple[str, ...]
    line: int
    level: int
    at_import_time: bool  # outside functions and outside `if TYPE_CHECKING`

    @property
    def root(self) -> str:
        """The topmost package."""
        return self.module.split(".")[0]


class _Imports(ast.NodeVisitor):
    """Collects imports and knows whether they run when the module is imported."""

    def __init__(self) -> None:
        self.found: list[Import] = []
        self._deferred = 0

    def _defer(self, node: ast.AST) -> None:
        self._deferred += 1
        self.generic_visit(node)
        self._deferred -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _defer

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)
            return
        self._deferred += 1
        for child in node.body:
            self.visit(child)
        self._deferred -= 1
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.found.append(Import(alias.name, (), node.lineno, 0, self._deferred == 0))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        names = tuple(alias.name for alias in node.names)
        self.found.append(Import(node.module or "", names, node.lineno, node.level, self._deferred == 0))


def imports(tree: ast.AST) -> list[Import]:
    """Every import of a file, wherever it stands."""
    visitor = _Imports()
    visitor.visit(tree)
    return visitor.found


def star_imports(tree: ast.AST) -> Iterator[str]:
    """`from x import *`: a reader cannot tell where a name comes from."""
    for item in imports(tree):
        if "*" in item.names:
            yield f"line {item.line}: star import from {item.module or '.' * item.level}"


def foreign_imports(tree: ast.AST, own: str, declared: Collection[str], lazy: Collection[str]) -> Iterator[str]:
    """Imports of anything but the standard library, the package itself and what its manifest declares.

    Args:
        tree: the parsed file.
        own: the import name of the package.
        declared: import names of the required dependencies.
        lazy: import names that may be imported inside functions only, because an extra brings them.
    """
    for item in imports(tree):
        if item.level or item.module == own or item.module.startswith(own + "."):
            continue
        if item.root in sys.stdlib_module_names or item.root in declared:
            continue
        if item.root not in lazy:
            yield f"line {item.line}: imports {item.module}, which the manifest does not declare"
        elif item.at_import_time:
            yield f"line {item.line}: imports {item.module}, which an extra brings, outside a function"


def forbidden_imports(tree: ast.AST, forbidden: Collection[str]) -> Iterator[str]:
    """Imports of a module in `forbidden`, or of anything below it, wherever they stand."""
    for item in imports(tree):
        reached = [item.module, *(f"{item.module}.{name}" for name in item.names)]
        for module in forbidden:
            if not item.level and any(name == module or name.startswith(module + ".") for name in reached):
                yield f"line {item.line}: imports {module}"


def forbidden_names(tree: ast.AST, forbidden: Collection[str]) -> Iterator[str]:
    """Uses of a name, as a variable, an attribute or an import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used = [node.id]
        elif isinstance(node, ast.Attribute):
            used = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            used = [alias.name for alias in node.names]
        else:
            continue
        yield from (f"line {node.lineno}: names {name}" for name in used if name in forbidden)


def vendor_names(tree: ast.AST) -> Iterator[str]:
    """`torch.cuda…`, `torch.backends.mps`, `from torch import xpu`, `tensor.is_cuda`: a device vendor by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            ends_in_vendor = node.attr in VENDORS and dotted.split(".")[0] == "torch"
            if ends_in_vendor or node.attr.removeprefix("is_") in VENDORS - {node.attr}:
                yield f"line {node.lineno}: names {dotted}"
    for item in imports(tree):
        if item.root != "torch" or item.level:
            continue
        parts = {*item.module.split("."), *item.names}
        yield from (f"line {item.line}: imports {vendor} from torch" for vendor in sorted(parts & VENDORS))
