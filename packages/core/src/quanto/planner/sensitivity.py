# SPDX-License-Identifier: Apache-2.0
"""`Sensitivity`: what each layer loses under each candidate scheme, measured once and kept in a file."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .._bytes import check_finite
from .._digest import digest_of
from .._progress import track
from ..scheme import Scheme
from ..serialization.folder import replace_text
from ..tensor import QTensor
from .fisher import Objective, drawn_targets, second_order
from .layers import Layer, encode, find_layers, stored_bits

__all__ = ["Sensitivity", "sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """Loss and size of every layer under every candidate.

    Attributes:
        layers: names.
        weights: elements of each layer.
        candidates: schemes, the same for all layers.
        losses: `losses[layer][candidate]`.
        bits: stored bits, `bits[layer][candidate]`.
        convention: what the losses are.
    """

    layers: tuple[str, ...]
    weights: tuple[int, ...]
    candidates: tuple[Scheme, ...]
    losses: tuple[tuple[float, ...], ...]
    bits: tuple[tuple[int, ...], ...]
    convention: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "convention": self.convention,
            "candidates": [scheme.to_dict() for scheme in self.candidates],
            "layers": {
                name: {"weights": n, "losses": list(losses), "bits": list(bits)}
                for name, n, losses, bits in zip(self.layers, self.weights, self.losses, self.bits, strict=True)
            },
        }


def sensitivity(
    model: nn.Module,
    data: Iterable[Any] | None,
    candidates: Sequence[Scheme | str],
    *,
    exclude: str | Sequence[str] = (),
    objective: Objective | None = None,
    cache: str | os.PathLike[str] | None = None,
    calibrated: bool = False,
    progress: bool | None = None,
) -> Sensitivity:
    """Measures what each layer loses under each candidate.

    With data, the loss is the divergence of the predictions from the float model's, to second order (see
    `quanto.planner.fisher`): one forward and backward pass over the data for all layers and candidates together.
    Without, it is the noise of the weight over its signal, which knows nothing of what a layer is for.

    Args:
        model: floating.
        data: batches, each a tensor, a tuple of arguments or a mapping of named ones; a few thousand tokens are enough.
        candidates: schemes or their names.
        exclude: globs of layers to leave alone.
        objective: for models that return no logits (see `quanto.planner.fisher.Objective`).
        cache: a JSON file; what it holds for this model, these data, an objective of this name and a candidate is not
            measured again.
        calibrated: whether linear layers are rounded by GPTQ on the data instead of by the candidate's own algorithm:
            for plans that a pipeline is to follow.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if there are no layers, candidates or data, a weight holds NaN or infinity, or the cache is no file
            of this function.
    """
    schemes = tuple(dict.fromkeys(Scheme.of(candidate) for candidate in candidates))
    if not schemes:
        raise ValueError("candidates must name at least one scheme")
    layers = find_layers(model, [exclude] if isinstance(exclude, str) else exclude)
    for layer in layers:
        check_finite(f"{layer.name}.weight", layer.weight)
    batches = None if data is None else list(data)
    if calibrated and batches is None:
        raise ValueError("calibrated=True needs data")
    path = None if cache is None else Path(cache)
    key = digest_of(model.state_dict(), batches, _name_of(objective)) if path is not None else ""
    names = {s: ("gptq " if calibrated else "") + _id(s) for s in schemes}
    known = {} if path is None else _read(path, key)
    missing = [s for s in schemes if any(names[s] not in known.get(layer.name, {}) for layer in layers)]
    if missing:
        found = _measure(model, layers, missing, batches, objective, calibrated, progress)
        for layer, losses in zip(layers, found, strict=True):
            known.setdefault(layer.name, {}).update(zip((names[s] for s in missing), losses, strict=True))
        if path is not None:
            replace_text(path, json.dumps({"quanto_sensitivity": 1, "of": key, "losses": known}, indent=1) + "\n")
    return Sensitivity(
        tuple(layer.name for layer in layers),
        tuple(layer.weight.numel() for layer in layers),
        schemes,
        tuple(tuple(known[layer.name][names[s]] for s in schemes) for layer in layers),
        tuple(tuple(stored_bits(layer, s.fitted() if calibrated else s) for s in schemes) for layer in layers),
        "nats of divergence per prediction, second order" if batches is not None else "noise over signal of weights",
    )


def _measure(
    model: nn.Module,
    layers: list[Layer],
    schemes: list[Scheme],
    batches: list[Any] | None,
    objective: Objective | None,
    calibrated: bool,
    progress: bool | None,
) -> list[list[float]]:
    if calibrated and batches is not None:
        from .calibrated import calibrated_codes  # imports every algorithm

        coded = calibrated_codes(model, layers, schemes, batches, progress)
    else:
        coded = [(layer, [encode(layer, s) for s in schemes]) for layer in track(layers, "quantize", enabled=progress)]
    if batches is None:
        return [_noise(layer, codes) for layer, codes in coded]
    losses = second_order(model, coded, batches, objective or drawn_targets(), progress)
    return _completed(losses, coded)


def _noise(layer: Layer, codes: Sequence[QTensor]) -> list[float]:
    """Squares that quantizing the weight loses, over its own, for each candidate."""
    rows = layer.rows(layer.weight.detach()).float()
    signal = rows.square().sum().item() or 1.0
    return [(c.dequantize().float() - rows).square().sum().item() / signal for c in codes]


def _completed(losses: list[list[float]], coded: list[tuple[Layer, list[QTensor]]]) -> list[list[float]]:
    """Layers that the data does not reach lose as much for the noise of their weights as the others do on average."""
    missing = [layer.name for found, (layer, _) in zip(losses, coded, strict=True) if not found]
    if not missing:
        return losses
    if len(missing) == len(losses):
        raise ValueError("data reaches none of the layers: no gradient comes to any of them")
    names = f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
    warnings.warn(f"the data does not reach {len(missing)} layers ({names}): they count as average ones", stacklevel=4)
    noises = [_noise(layer, codes) for layer, codes in coded]
    reached = [sum(found) / (sum(noise) or 1.0) for found, noise in zip(losses, noises, strict=True) if found]
    factor = sum(reached) / len(reached)
    return [found or [factor * n for n in noise] for found, noise in zip(losses, noises, strict=True)]


def _name_of(objective: Objective | None) -> str:
    function = getattr(objective, "func", objective)  # of a partial
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"


def _id(scheme: Scheme) -> str:
    return json.dumps(scheme.to_dict(), sort_keys=True)


def _read(path: Path, key: str) -> dict[str, dict[str, float]]:
    """Losses by layer and scheme; none where the file is of another model or other data."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        sound = data["quanto_sensitivity"] == 1
        found: dict[str, dict[str, float]] = data["losses"] if data["of"] == key else {}
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is no cache of sensitivities; name another file, or remove it")
    return found
