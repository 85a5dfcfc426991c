# SPDX-License-Identifier: Apache-2.0
"""Which modules of a model a config quantizes, and how."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from quanto import Scheme
from quanto.hosts.choice import Choice
from quanto.hosts.rules import JsonRule, Pattern, parse_rules
from quanto.nn import QModule, modules
from quanto.nn.slot import ARRANGEMENTS

from . import experts
from .config import QuantoConfig

__all__ = ["Choice", "default_skips", "select"]

_log = logging.getLogger("quanto_transformers")


def select(model: Any, config: QuantoConfig) -> list[Choice]:
    """Decides for each module of a float model.

    The first of these that speaks of a module decides: `modules_to_not_convert`; rules; `lm_head` and `embeddings`; the
    default skips; the scheme of the config.

    Raises:
        ValueError: if a rule matches no module, or tied weights would be quantized apart.
    """
    rules = parse_rules(config.rules)
    skips = [Pattern(text) for text in config.modules_to_not_convert or ()]
    defaults = default_skips(model) if config.keep_default_skips else set()
    asked = _asked_for(model, config)
    named = dict(model.named_modules())
    _complain(rules, skips, list(named))
    chosen: list[Choice] = []
    for name, module in named.items():
        if isinstance(module, QModule) or any(skip.matches(name) for skip in skips):
            continue
        rule = next((r for r in rules if r.rule.matches(name, module)), None)
        scheme = config.scheme if rule is None else rule.scheme
        explicit = rule is not None or name in asked
        if scheme is None or (not explicit and _is_below(name, defaults)):
            continue
        chosen += _choose(name, module, scheme, rule, explicit, config)
    _check_ties(model, chosen)
    return chosen


def _choose(
    name: str, module: nn.Module, scheme: Scheme, rule: JsonRule | None, explicit: bool, config: QuantoConfig
) -> Iterator[Choice]:
    if rule is not None and rule.parameters:
        yield Choice(name, module, scheme, _raw(name, module, rule))
        return
    found = experts.arrangements(module)
    if found is not None:
        if config.experts or explicit:
            yield Choice(name, module, scheme, found)
        return
    twin, reason = modules.find(module)
    if twin is None:
        if explicit or isinstance(module, (nn.Linear, nn.Embedding)):
            _log.log(logging.WARNING if explicit else logging.INFO, "%s stays floating: %s", name, reason)
        return
    if twin.only_activations and (scheme.activations is None or scheme.dynamic is True):
        return
    if twin.default or explicit:
        yield Choice(name, module, scheme, None)


def _raw(name: str, module: nn.Module, rule: JsonRule) -> dict[str, str]:
    out = {}
    for text in rule.parameters:
        bare = text.removesuffix(".T")
        if not isinstance(module._parameters.get(bare), nn.Parameter):
            raise ValueError(f"the rule {rule.pattern!r}: {name} ({type(module).__name__}) has no parameter {bare!r}")
        out[bare] = ARRANGEMENTS[3] if text.endswith(".T") else ARRANGEMENTS[0]
    return out


def default_skips(model: Any) -> set[str]:
    """Modules that stay floating unless asked for: output embeddings, the last module, tied weights, float32 ones."""
    named = dict(model.named_modules())
    names = {module: name for name, module in named.items()}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    found = {key.rpartition(".")[0] for key in (*tied.keys(), *tied.values())}
    head = model.get_output_embeddings()
    if head is not None and head in names:
        found.add(names[head])
    last = [name.rpartition(".")[0] for name, _ in model.named_parameters()][-1:]
    found |= {name for name in last if (twin := modules.find(named[name])[0]) is not None and not twin.only_activations}
    for kept in (getattr(model, "_keep_in_fp32_modules", None), getattr(model, "_keep_in_fp32_modules_strict", None)):
        patterns = [Pattern(text) for text in kept or ()]
        found |= {name for name in names.values() if any(p.matches(name) for p in patterns)}
    return found - {""}


def _is_below(name: str, parents: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in parents for i in range(len(parts)))


def _asked_for(model: Any, config: QuantoConfig) -> set[str]:
    """Names of the embeddings that the config's flags name."""
    wanted: set[nn.Module] = set()
    for module in model.modules():
        if config.lm_head and hasattr(module, "get_output_embeddings"):
            wanted.add(module.get_output_embeddings())
        if config.embeddings and hasattr(module, "get_input_embeddings"):
            wanted.add(_input_embeddings(module))
    return {name for name, module in model.named_modules() if module in wanted}


def _input_embeddings(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # of models without any, such as those for images
        return None


def _complain(rules: list[JsonRule], skips: list[Pattern], names: list[str]) -> None:
    for rule in rules:
        if isinstance(rule.rule.pattern, str) and not any(rule.rule.matches(name, _NOTHING) for name in names):
            sample = ", ".join(repr(n) for n in names if n.count("."))[:200]
            raise ValueError(f"the rule {rule.pattern!r} matches no module; names look like {sample} …")
    for skip in skips:
        if not any(skip.matches(name) for name in names):
            _log.warning("modules_to_not_convert: %r matches no module of the model", skip.text)


def _check_ties(model: Any, chosen: list[Choice]) -> None:
    schemes = {c.name: c.scheme for c in chosen}
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        one, other = name.rpartition(".")[0], source.rpartition(".")[0]
        if schemes.get(one) != schemes.get(other) and _has_weight(model, name) and _has_weight(model, source):
            raise ValueError(
                f"{name!r} and {source!r} are one tied weight: quantize both alike (QuantoConfig(lm_head=True, "
                "embeddings=True), or a rule for each) or neither"
            )


def _has_weight(model: Any, name: str) -> bool:
    try:
        return isinstance(model.get_parameter(name), torch.Tensor)
    except AttributeError:
        return False


_NOTHING = nn.Identity()
