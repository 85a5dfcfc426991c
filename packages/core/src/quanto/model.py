# SPDX-License-Identifier: Apache-2.0
"""Quantizing whole models: the verbs of quanto."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._progress import track
from .nn.base import QModule
from .nn.fused import fuse, unfuse
from .nn.parameters import QParameters
from .nn.registry import convert, modules, restore
from .qtypes import QType
from .scheme import Rule, Scheme
from .selection import default_scheme, select

__all__ = ["arrange", "dequantize", "freeze", "quantize", "quantize_module", "quantized"]


def quantize(
    model: nn.Module,
    weights: str | QType | torch.dtype | None = None,
    activations: str | QType | torch.dtype | None = None,
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
        weights: qtype of the weights, such as `"int8"` or `torch.int8`.
        activations: qtype of the layers' inputs, `"int8"` or `"float8"`; None leaves them floating.
        scheme: a whole `Scheme` or the name of a preset, instead of weights and activations.
        rules: `Rule`s, or pairs or a mapping of pattern and scheme; the first that matches a module decides, None
            leaves it floating. Modules that no rule matches get the scheme above, if there is one.
        include: globs; only modules whose name matches one get the scheme above. An embedding is quantized only if a
            rule or an include names it.
        exclude: globs of modules to leave alone; one may match nothing, so that a list serves several models.
        progress: whether to show a progress bar; None shows one in a terminal.
        **options: further fields of `Scheme`, such as `group_size` or `algorithm`.

    Returns:
        The model itself. What was left floating, and why, is in `quanto.explain(model)`.

    Raises:
        TypeError: if the model is not a module.
        ValueError: if options conflict, a rule or an include matches nothing, an algorithm is unknown, or a module is
            lazy and has no parameters yet. Nothing was changed then.
    """
    _check_model("quantize", model)
    default = default_scheme(weights, activations, scheme, options)
    plan = select(model, default, rules, include, exclude)
    if all(isinstance(module, QModule) and not module._slots for _, module, *_ in plan):
        _warn_frozen(model)
    for name, module, wanted, parameters in track(plan, "quantize", enabled=progress):
        quantize_module(name, module, wanted, parameters)
    unfuse(model)
    return model


def _warn_frozen(model: nn.Module) -> None:
    frozen = Counter(str(m.scheme) for m in model.modules() if isinstance(m, QModule) and m.frozen and m._slots)
    if frozen:
        kinds = " and ".join(f"{n} as {scheme}" for scheme, n in frozen.items())
        warnings.warn(
            f"quantize changed nothing: what is frozen stays ({kinds}); quanto.dequantize(model) makes it float again",
            stacklevel=3,
        )


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
        if module._slots:
            module.prepare()
        if "_scheme" in module.__dict__:  # of modules without slots
            module.__dict__["_scheme"] = scheme
        return
    if parameters is not None:
        convert(module, QParameters).init_quantized(scheme, parameters)
        return
    twin, reason = modules.find(module)
    assert twin is not None, reason
    convert(module, twin.quantized).init_quantized(scheme)


def _check_model(verb: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{verb} takes a torch.nn.Module, got {type(model).__name__}")


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
    _check_model("freeze", model)
    found = [m for m in model.modules() if isinstance(m, QModule)]
    if not found:
        raise ValueError(
            "nothing to freeze: no module is quantized. quanto.quantize(model, …) comes first; if it was called, "
            "print(quanto.explain(model)) says why modules stayed floating"
        )
    with torch.inference_mode(False), torch.no_grad():  # what inference mode makes cannot be used with gradients later
        _freeze_each(found, progress)
        arrange(model)
    return model


def _freeze_each(found: list[QModule], progress: bool | None) -> None:
    """Freezes one module after the other; a float weight that no other module holds is gone when its codes are made."""
    owners = Counter(id(p) for m in found for n in m._slots if (p := m._parameters.get(n)) is not None)
    shared: dict[tuple[int, str], list[Tensor | None]] = {}
    kept_alive: list[Any] = []  # identities in `shared` are valid only while their owners live
    for module in track(found, "freeze", enabled=progress):
        mine = [p for n in module._slots if (p := module._parameters.get(n)) is not None]
        tied = any(owners[id(p)] > 1 for p in mine)
        if tied:
            kept_alive += mine
        del mine
        module.freeze(shared if tied else None)


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
    _check_model("dequantize", model)
    shared: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        if isinstance(module, QModule):
            tied = {n: id(module._parameters.get(f"{n}_packed")) for n in module._slots if module.frozen}
            restore(module)
            for name, key in tied.items():
                module._parameters[name] = shared.setdefault(key, module._parameters[name])  # type: ignore[arg-type]
    fuse(model)
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
