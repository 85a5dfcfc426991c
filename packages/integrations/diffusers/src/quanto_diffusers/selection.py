# SPDX-License-Identifier: Apache-2.0
"""Which modules of a model a config quantizes, and how."""

from __future__ import annotations

import logging
from collections.abc import Collection

from torch import nn

from quanto import Scheme
from quanto.hosts.choice import Choice
from quanto.hosts.rules import JsonRule, Pattern, parse_rules
from quanto.nn import QModule, modules
from quanto.nn.slot import ARRANGEMENTS

from .config import QuantoConfig

__all__ = ["Choice", "select"]

_log = logging.getLogger("quanto_diffusers")


def select(
    model: nn.Module, config: QuantoConfig, keep: Collection[str] = (), only: Collection[str] | None = None
) -> list[Choice]:
    """Decides for each module of a float model.

    The first of these that speaks of a module decides: `modules_to_not_convert`; rules; what stays in float32; the
    scheme of the config.

    Args:
        model: on any device.
        config: what to do.
        keep: parts of paths that the model wants in float32.
        only: names of the modules to quantize, where that is known; None for all.

    Raises:
        ValueError: if a rule matches no module.
    """
    rules = parse_rules(config.rules)
    skips = [Pattern(text) for text in config.modules_to_not_convert or ()]
    kept = set(keep) if config.keep_default_skips else set()
    named = dict(model.named_modules())
    _complain(rules, skips, list(named))
    chosen = []
    for name, module in named.items():
        if isinstance(module, QModule) or any(skip.matches(name) for skip in skips):
            continue
        if only is not None and name not in only:
            continue
        rule = next((r for r in rules if r.rule.matches(name, module)), None)
        scheme = config.scheme if rule is None else rule.scheme
        if scheme is None or (rule is None and kept.intersection(name.split("."))):
            continue
        choice = _choose(name, module, scheme, rule)
        if choice is not None:
            chosen.append(choice)
    return chosen


def _choose(name: str, module: nn.Module, scheme: Scheme, rule: JsonRule | None) -> Choice | None:
    if rule is not None and rule.parameters:
        found = {}
        for text in rule.parameters:
            bare = text.removesuffix(".T")
            if not isinstance(module._parameters.get(bare), nn.Parameter):
                kind = type(module).__name__
                raise ValueError(f"the rule {rule.pattern!r}: {name} ({kind}) has no parameter {bare!r}")
            found[bare] = ARRANGEMENTS[3] if text.endswith(".T") else ARRANGEMENTS[0]
        return Choice(name, module, scheme, found)
    twin, reason = modules.find(module)
    if twin is None:
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            _log.log(logging.INFO if rule is None else logging.WARNING, "%s stays floating: %s", name, reason)
        return None
    if twin.only_activations and (scheme.activations is None or scheme.dynamic is True):
        return None
    return Choice(name, module, scheme) if twin.default or rule is not None else None


def _complain(rules: list[JsonRule], skips: list[Pattern], names: list[str]) -> None:
    sample = ", ".join(repr(n) for n in names if n.count("."))[:200]
    for rule in rules:
        if not any(rule.rule.matches(name, _NOTHING) for name in names):
            raise ValueError(f"the rule {rule.pattern!r} matches no module; names look like {sample} …")
    for skip in skips:
        if not any(skip.matches(name) for name in names):
            _log.warning("modules_to_not_convert: %r matches no module of the model", skip.text)


_NOTHING = nn.Identity()
