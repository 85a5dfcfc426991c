# SPDX-License-Identifier: Apache-2.0
"""Patterns on module names, as JSON knows them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..scheme import Rule, Scheme

__all__ = ["JsonRule", "Pattern", "parse_rules"]


@dataclass(frozen=True)
class Pattern:
    """A path, a glob or a regular expression.

    Attributes:
        text: `"re:…"` matches the whole name; with `*`, `?` or `[` it is a glob for the whole name; otherwise a path,
            which matches itself, what is below it, and any name that holds it as whole parts: `"layers.1"` matches
            `model.layers.1.mlp` and not `model.layers.11`.
    """

    text: str

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        if self.text.startswith("re:"):
            try:
                return re.compile(self.text[3:] + r"\Z")
            except re.error as error:
                raise ValueError(f"{self.text!r} is not a regular expression: {error}") from None
        if any(c in self.text for c in "*?["):
            return re.compile(fnmatch.translate(self.text))
        return re.compile(rf"(?:.*\.)?{re.escape(self.text)}(?:\..*)?\Z")

    def matches(self, name: str) -> bool:
        """Whether it speaks of the module of that name."""
        return self._regex.match(name) is not None


@dataclass(frozen=True)
class JsonRule:
    """A `quanto.Rule` that can be written to a file.

    Attributes:
        pattern: a glob on the whole name, or `"re:…"`.
        scheme: None leaves the modules floating.
        parameters: raw parameters to quantize in modules without a twin; see `quanto.Rule`.
    """

    pattern: str
    scheme: Scheme | None
    parameters: tuple[str, ...] = ()

    @cached_property
    def rule(self) -> Rule:
        """The rule of core."""
        return Rule(self.pattern, self.scheme, self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        scheme = None if self.scheme is None else self.scheme.to_dict()
        extra = {"parameters": list(self.parameters)} if self.parameters else {}
        return {"pattern": self.pattern, "scheme": scheme, **extra}


def parse_rules(rules: Mapping[str, Any] | Sequence[Any] | None) -> list[JsonRule]:
    """Reads rules as a user gives them, or as a file holds them.

    Raises:
        ValueError: naming the rule that is none.
    """
    if rules is None:
        return []
    if isinstance(rules, str):
        raise ValueError(f"rules must be a mapping or a list, got {rules!r}")
    return [_parse(item) for item in (rules.items() if isinstance(rules, Mapping) else rules)]


def _parse(item: Any) -> JsonRule:
    if isinstance(item, JsonRule):
        return item
    if isinstance(item, Rule):
        item = {"pattern": item.pattern, "scheme": item.scheme, "parameters": item.parameters}
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        item = {"pattern": item[0], "scheme": item[1]}
    if not isinstance(item, Mapping) or "pattern" not in item or "scheme" not in item:
        raise ValueError(f"a rule is a pair of a pattern and a scheme, got {item!r}")
    if unknown := set(item) - {"pattern", "scheme", "parameters"}:
        raise ValueError(f"a rule has no field {sorted(unknown)[0]!r}: {item!r}")
    pattern, scheme = item["pattern"], item["scheme"]
    if isinstance(pattern, re.Pattern):
        pattern = f"re:{pattern.pattern}"
    if not isinstance(pattern, str):
        raise ValueError(f"a rule's pattern must be text, for it is saved with the model; got {pattern!r}")
    try:
        made = JsonRule(pattern, None if scheme is None else Scheme.of(scheme), tuple(item.get("parameters", ())))
        made.rule  # noqa: B018 - compiles the expression
    except (TypeError, ValueError) as error:
        raise ValueError(f"the rule for {pattern!r}: {error}") from None
    return made
