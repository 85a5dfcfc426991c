# SPDX-License-Identifier: Apache-2.0
"""Which modules of a model are quantized, and to what: rules, includes, excludes and ties."""

from __future__ import annotations

import difflib
import fnmatch
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .nn.base import QModule
from .nn.registry import modules
from .nn.slot import ARRANGEMENTS
from .qtypes import QType
from .quantizers import get_quantizer
from .scheme import Rule, Scheme

__all__ = ["default_scheme", "select"]

_log = logging.getLogger("quanto")

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

#: name, module, scheme, and for raw parameters their arrangement by name
_Chosen = tuple[str, nn.Module, Scheme, dict[str, str] | None]


def select(
    model: nn.Module, default: Scheme | None, rules: Any, include: str | Sequence[str] | None, exclude: Any
) -> list[_Chosen]:
    """The modules to quantize; see `quanto.quantize` for the arguments and what they mean.

    Raises:
        ValueError: as `quanto.quantize` says.
    """
    listed = _rules(rules)
    if default is None and not listed:
        raise ValueError("say what to quantize to: weights='int8', a scheme, or rules")
    includes = None if include is None else _globs("include", include)
    excludes = _globs("exclude", exclude)
    used: set[int] = set()
    plan: list[_Chosen] = []
    names = list(model.named_modules())
    for name, module in names:
        chosen = _decide(name, module, default, listed, includes, excludes, used)
        if chosen is not None:
            plan.append((name, module, *chosen))
    _complain(listed, includes or [], used, names)
    for name, module, scheme, _ in plan:
        get_quantizer(scheme.quantizer)
        if any(is_lazy(p) for p in module.parameters(recurse=False)):
            raise ValueError(f"{name or type(module).__name__} is lazy: run one batch through the model before")
    return _respect_ties(model, plan)


def default_scheme(weights: Any, activations: Any, scheme: Any, options: dict[str, Any]) -> Scheme | None:
    """The scheme of modules that no rule matches, from the arguments of `quanto.quantize`; None for none."""
    if scheme is not None:
        if weights is not None or activations is not None or options:
            raise ValueError("give either a scheme or weights, activations and options, not both")
        return Scheme.of(scheme)
    if weights is None and activations is None and not options:
        return None
    names: dict[str, Any] = {
        k: str(q) for k, q in (("weights", weights), ("activations", activations)) if q is not None
    }
    try:
        return Scheme(**names, **options)
    except TypeError as error:
        raise TypeError(str(error).replace("Scheme.__init__()", "quantize()")) from None


def _rules(rules: Any) -> list[Rule]:
    pairs: Iterable[Any] = rules.items() if isinstance(rules, Mapping) else rules
    out = []
    for rule in pairs:
        if not isinstance(rule, Rule):
            if not isinstance(rule, (tuple, list)) or len(rule) != 2:
                raise TypeError(f"rules must hold Rules or pairs of a pattern and a scheme, got {rule!r}")
            pattern, scheme = rule
            known = scheme is None or isinstance(scheme, (Scheme, str, QType, Mapping))
            if not known:
                raise TypeError(f"the rule {pattern!r} must give a scheme, its name or None, got {scheme!r}")
            rule = Rule(pattern, None if scheme is None else Scheme.of(scheme))
        if not isinstance(rule.pattern, (str, re.Pattern)) and not callable(rule.pattern):
            raise TypeError(f"a pattern must be a glob, a regular expression or a callable, got {rule.pattern!r}")
        out.append(rule)
    return out


def _globs(argument: str, patterns: object) -> list[str]:
    if isinstance(patterns, str):
        return [patterns]
    if not isinstance(patterns, Iterable):
        raise TypeError(f"{argument} must be a glob or several, got {patterns!r}")
    found = list(patterns)
    if wrong := [p for p in found if not isinstance(p, str)]:
        raise TypeError(f"{argument} must hold globs, got {wrong[0]!r}")
    return found


def _decide(
    name: str,
    module: nn.Module,
    default: Scheme | None,
    rules: list[Rule],
    includes: list[str] | None,
    excludes: list[str],
    used: set[int],
) -> tuple[Scheme, dict[str, str] | None] | None:
    """The scheme of a module and, for raw parameters, their arrangement; None leaves it as it is."""
    rule = next((r for r in rules if r.matches(name, module)), None)
    if rule is not None:
        used.add(id(rule))
        if rule.scheme is None:
            return None
    if any(fnmatch.fnmatchcase(name, p) for p in excludes):
        return None
    if rule is not None and rule.parameters and not isinstance(module, QModule):
        assert rule.scheme is not None
        return rule.scheme, _raw_parameters(name, module, rule.parameters)
    named = includes is not None and any(fnmatch.fnmatchcase(name, p) for p in includes)
    if rule is None and (default is None or (includes is not None and not named)):
        return None
    scheme = rule.scheme if rule is not None else default
    assert scheme is not None
    if isinstance(module, QModule):
        if module.frozen and module._slots:
            return None
        return scheme, None
    twin, reason = modules.find(module)
    if twin is None:
        meant = (rule is not None or named) and any(p is not None for p in module._parameters.values())
        if meant or any(isinstance(module, c) for c in modules.twins) or _holds_matrix(module):
            _skip(name, module, reason)
        return None
    if twin.only_activations and (scheme.activations is None or scheme.dynamic is True):
        return None
    for parameter in twin.quantized.quantized_parameters:
        if (wrong := _unfit(module, parameter)) is not None:
            _skip(name, module, wrong)
            return None
    if not twin.default and rule is None and not named:
        _skip(name, module, f"{type(module).__name__} is quantized only where a rule or an include names it")
        return None
    return scheme, None


def _holds_matrix(module: nn.Module) -> bool:
    """Whether a module has weights of its own that a reader would expect to be quantized."""
    return any(p is not None and p.ndim > 1 and p.is_floating_point() for p in module._parameters.values())


def _unfit(module: nn.Module, name: str) -> str | None:
    """Why a parameter cannot be quantized, or None."""
    parameter = getattr(module, name, None)
    if not isinstance(parameter, Tensor) or is_lazy(parameter) or parameter.dtype in _FLOATS:
        return None
    return f"its {name} is {parameter.dtype}; float64, float32, float16 and bfloat16 can be quantized"


def _raw_parameters(name: str, module: nn.Module, parameters: tuple[str, ...]) -> dict[str, str]:
    arrangements = {}
    for parameter in parameters:
        bare = parameter.removesuffix(".T")
        if not isinstance(getattr(module, bare, None), Tensor):
            raise ValueError(f"rule for {name!r}: {type(module).__name__} has no parameter {bare!r}")
        if (reason := _unfit(module, bare)) is not None:
            raise ValueError(f"rule for {name!r}: {reason}")
        arrangements[bare] = ARRANGEMENTS[3] if parameter.endswith(".T") else ARRANGEMENTS[0]
    return arrangements


def _complain(rules: list[Rule], includes: list[str], used: set[int], found: list[tuple[str, nn.Module]]) -> None:
    names = [name for name, _ in found]
    for rule in rules:
        if id(rule) not in used and not any(rule.matches(name, module) for name, module in found):
            pattern = getattr(rule.pattern, "pattern", rule.pattern)
            raise ValueError(f"the rule {pattern!r} matches no module; {_near(pattern, names)}")
    for pattern in includes:
        if not any(fnmatch.fnmatchcase(n, pattern) for n in names):
            raise ValueError(f"include={pattern!r} matches no module; {_near(pattern, names)}")


def _near(pattern: object, names: list[str]) -> str:
    named = [n for n in names if n]
    close = difflib.get_close_matches(pattern, named, 3, 0.3) if isinstance(pattern, str) else []
    return f"names near it are {', '.join(map(repr, close or named[-3:]))}" if named else "the model has no submodules"


def _skip(name: str, module: nn.Module, reason: str) -> None:
    module.__dict__["_quanto_skipped"] = reason
    _log.info("%s stays as it is: %s", name or type(module).__name__, reason)


def _respect_ties(model: nn.Module, plan: list[Any]) -> list[Any]:
    """Leaves out modules whose weight is shared with one that would not be quantized alike."""
    owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((name, module, parameter_name))
    schemes = {id(m): m.scheme for m in model.modules() if isinstance(m, QModule)}
    schemes |= {id(module): scheme for _, module, scheme, _ in plan}
    kept = []
    for name, module, scheme, parameters in plan:
        other = None
        if isinstance(module, QModule):
            slots: Iterable[str] = module._slots
        else:
            twin, _ = modules.find(module)
            slots = parameters or (twin.quantized.quantized_parameters if twin else {})
        for slot in slots:
            for other_name, other_module, _ in owners.get(id(module._parameters.get(slot)), ()):
                if other_module is not module and schemes.get(id(other_module)) != scheme:
                    other = other_name
        if other is None:
            kept.append((name, module, scheme, parameters))
        else:
            _skip(name, module, f"its weight is tied to {other!r}, which is not quantized alike: name both or neither")
    return kept
