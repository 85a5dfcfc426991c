# SPDX-License-Identifier: Apache-2.0
"""Quantizing whole models: the verbs of quanto."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ._progress import track
from .nn.base import QModule
from .nn.parameters import QParameters
from .nn.registry import convert, modules, restore
from .nn.slot import ARRANGEMENTS
from .qtypes import QType
from .scheme import Rule, Scheme

__all__ = ["arrange", "dequantize", "freeze", "quantize", "quantize_module", "quantized"]

_log = logging.getLogger("quanto")


def quantize(
    model: nn.Module,
    weights: str | QType | None = None,
    activations: str | QType | None = None,
    *,
    scheme: Scheme | str | None = None,
    rules: Sequence[Rule | tuple[Any, Any]] | Mapping[str, Any] = (),
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    progress: bool | None = None,
    **options: Any,
) -> nn.Module:
    """Quantizes a model in place; its weights stay trainable floats, rounded on the fly, until `freeze`.

    Args:
        model: any module; a lone `nn.Linear` too, and models on the meta device.
        weights: qtype of the weights, such as `"int8"`.
        activations: qtype of the layers' inputs, `"int8"` or `"float8"`; None leaves them floating.
        scheme: a whole `Scheme` or the name of a preset, instead of weights and activations.
        rules: `Rule`s, or pairs or a mapping of pattern and scheme; the first that matches a module decides, None
            leaves it floating. Modules that no rule matches get the scheme above, if there is one.
        include: globs; only modules whose name matches one get the scheme above. An embedding is quantized only if a
            rule or an include names it.
        exclude: globs of modules to leave alone.
        progress: whether to show a progress bar; None shows one in a terminal.
        **options: further fields of `Scheme`, such as `group_size` or `algorithm`.

    Returns:
        The model itself. What was left floating, and why, is in `quanto.explain(model)`.

    Raises:
        ValueError: if options conflict, or a rule or an include matches nothing.
    """
    default = _default_scheme(weights, activations, scheme, options)
    listed = _rules(rules)
    if default is None and not listed:
        raise ValueError("say what to quantize to: weights='int8', a scheme, or rules")
    includes, excludes = _globs(include), _globs(exclude)
    used: set[int] = set()
    plan: list[tuple[str, nn.Module, Scheme, dict[str, str] | None]] = []
    names = list(model.named_modules())
    for name, module in names:
        chosen = _decide(name, module, default, listed, includes, excludes, used)
        if chosen is not None:
            plan.append((name, module, *chosen))
    _complain(listed, includes, used, names)
    plan = _respect_ties(model, plan)
    for name, module, wanted, parameters in track(plan, "quantize", enabled=progress):
        quantize_module(name, module, wanted, parameters)
    return model


def _default_scheme(weights: Any, activations: Any, scheme: Any, options: dict[str, Any]) -> Scheme | None:
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
            pattern, scheme = rule
            rule = Rule(pattern, None if scheme is None else Scheme.of(scheme))
        out.append(rule)
    return out


def _globs(patterns: str | Sequence[str] | None) -> list[str] | None:
    if patterns is None:
        return None
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _decide(
    name: str,
    module: nn.Module,
    default: Scheme | None,
    rules: list[Rule],
    includes: list[str] | None,
    excludes: list[str] | None,
    used: set[int],
) -> tuple[Scheme, dict[str, str] | None] | None:
    """The scheme of a module and, for raw parameters, their arrangement; None leaves it as it is."""
    rule = next((r for r in rules if r.matches(name, module)), None)
    if rule is not None:
        used.add(id(rule))
        if rule.scheme is None:
            return None
    if any(fnmatch.fnmatchcase(name, p) for p in excludes or ()):
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
        if any(isinstance(module, c) for c in modules.twins):
            _skip(name, module, reason)
        return None
    if twin.only_activations and (scheme.activations is None or scheme.dynamic is True):
        return None
    if not twin.default and rule is None and not named:
        return None
    return scheme, None


def _raw_parameters(name: str, module: nn.Module, parameters: tuple[str, ...]) -> dict[str, str]:
    arrangements = {}
    for parameter in parameters:
        bare = parameter.removesuffix(".T")
        if not isinstance(getattr(module, bare, None), Tensor):
            raise ValueError(f"rule for {name!r}: {type(module).__name__} has no parameter {bare!r}")
        arrangements[bare] = ARRANGEMENTS[3] if parameter.endswith(".T") else ARRANGEMENTS[0]
    return arrangements


def _complain(
    rules: list[Rule], includes: list[str] | None, used: set[int], found: list[tuple[str, nn.Module]]
) -> None:
    names = [name for name, _ in found]
    for rule in rules:
        if id(rule) not in used and not any(rule.matches(name, module) for name, module in found):
            pattern = getattr(rule.pattern, "pattern", rule.pattern)
            raise ValueError(f"the rule {pattern!r} matches no module; {_near(pattern, names)}")
    for pattern in includes or ():
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


def quantize_module(name: str, module: nn.Module, scheme: Scheme, parameters: dict[str, str] | None) -> None:
    """Gives one module a scheme, and its class the quantized twin.

    Args:
        name: for messages.
        module: floating, or quantized and trainable.
        scheme: what it gets.
        parameters: for raw parameters, their arrangement by name; None for modules that have a twin.
    """
    module.__dict__.pop("_quanto_skipped", None)
    if isinstance(module, QModule):
        if (module.scheme.activations, module.scheme.dynamic) != (scheme.activations, scheme.dynamic):
            module.input_scale = module.output_scale = None  # they were measured for the other
        for slot in module._slots.values():
            slot.scheme = scheme
        if "_scheme" in module.__dict__:  # of modules without slots
            module.__dict__["_scheme"] = scheme
        return
    if parameters is not None:
        convert(module, QParameters).init_quantized(scheme, parameters)
        return
    twin, reason = modules.find(module)
    assert twin is not None, reason
    convert(module, twin.quantized).init_quantized(scheme)


def quantized(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`quantize` on a copy; the model itself is not changed."""
    return quantize(copy.deepcopy(model), *args, **kwargs)


def freeze(model: nn.Module, *, progress: bool | None = None) -> nn.Module:
    """Turns the float weights of quantized modules into codes, in place; tied weights stay tied.

    Args:
        model: a model after `quantize`; modules already frozen are left alone.
        progress: whether to show a progress bar; None shows one in a terminal.

    Returns:
        The model itself.

    Raises:
        ValueError: if nothing in the model was quantized.
    """
    found = [m for m in model.modules() if isinstance(m, QModule)]
    if not found:
        raise ValueError("nothing to freeze: the model has no quantized module; call quanto.quantize(model, …) first")
    shared: dict[tuple[int, str], list[Tensor | None]] = {}
    kept_alive: list[Any] = []  # identities in `shared` are valid only while their owners live
    for module in track(found, "freeze", enabled=progress):
        kept_alive += [p for n in module._slots if (p := module._parameters.get(n)) is not None]
        module.freeze(shared)
    arrange(model)
    return model


def _tied(found: list[QModule]) -> set[int]:
    """Identities of codes that several modules hold; they stay canonical, so that they stay one."""
    seen: set[int] = set()
    tied: set[int] = set()
    for module in found:
        for name in module._slots:
            key = id(module._parameters.get(f"{name}_packed"))
            (tied if key in seen else seen).add(key)
    return tied


def dequantize(model: nn.Module) -> nn.Module:
    """Turns quantized modules back into what they were, in place: float parameters that hold the quantized values.

    Returns:
        The model itself.
    """
    shared: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        if isinstance(module, QModule):
            tied = {n: id(module._parameters.get(f"{n}_packed")) for n in module._slots if module.frozen}
            restore(module)
            for name, key in tied.items():
                module._parameters[name] = shared.setdefault(key, module._parameters[name])  # type: ignore[arg-type]
    return model


def arrange(model: nn.Module, layout: str | None = None) -> None:
    """Arranges frozen weights in memory; `freeze` and `load` did it already.

    Args:
        model: a quantized model; tied weights stay canonical.
        layout: None arranges each weight for its fastest kernel, `"canonical"` undoes it, as `torch.export` needs it.
    """
    found = [m for m in model.modules() if isinstance(m, QModule)]
    tied = _tied(found)
    for module in found:
        if not any(id(module._parameters.get(f"{n}_packed")) in tied for n in module._slots):
            module.arrange(layout)
            module._arranges = layout is None
