# SPDX-License-Identifier: Apache-2.0
"""One signature for the `QuantoConfig` of every library: what is written for one is valid in another."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "packages" / "integrations"


def signature(path: Path) -> dict[str, str]:
    """Names of the arguments of `QuantoConfig.__init__`, in order, with annotation, kind and default as text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "QuantoConfig")
    init = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    args = init.args
    positional = dict(zip([a.arg for a in args.args][::-1], args.defaults[::-1], strict=False))
    found = {a.arg: f"{ast.unparse(a.annotation)} = {ast.unparse(positional[a.arg])}" for a in args.args[1:]}  # type: ignore[arg-type]
    for argument, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found[argument.arg] = f"* {ast.unparse(argument.annotation)} = {ast.unparse(default)}"  # type: ignore[arg-type]
    return found


def test_transformers_and_diffusers_agree() -> None:
    one, other = (ROOT / n / "src" / f"quanto_{n}" / "config.py" for n in ("transformers", "diffusers"))
    expected = signature(one)
    assert list(expected)[:3] == ["weights", "activations", "modules_to_not_convert"]
    assert signature(other) == expected
    assert list(signature(other)) == list(expected)
