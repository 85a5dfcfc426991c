# SPDX-License-Identifier: Apache-2.0
"""`Sensitivity`: what each layer loses under each candidate scheme, measured once and kept in a file."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._progress import track
from ..scheme import Scheme
from ..serialization.folder import replace_text
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
        cache: a JSON file; what it holds for this model, these data and a candidate is not measured again.
        calibrated: whether linear layers are rounded by GPTQ on the data instead of by the candidate's own algorithm:
            for plans that a pipeline is to follow.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if there are no layers, candidates or data, or the cache is no file of this function.
    """
    schemes = tuple(dict.fromkeys(Scheme.of(candidate) for candidate in candidates))
    if not schemes:
        raise ValueError("candidates must name at least one scheme")
    layers = find_layers(model, [exclude] if isinstance(exclude, str) else exclude)
    batches = None if data is None else list(data)
    if calibrated and batches is None:
        raise ValueError("calibrated=True needs data")
    path = None if cache is None else Path(cache)
    key = _fingerprint(layers, batches) if path is not None else ""
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
    if batches is not None:
        return second_order(model, coded, batches, objective or drawn_targets(), progress)
    out = []
    for layer, codes in coded:
        rows = layer.rows(layer.weight.detach()).float()
        signal = rows.square().sum().item() or 1.0
        out.append([(c.dequantize().float() - rows).square().sum().item() / signal for c in codes])
    return out


def _id(scheme: Scheme) -> str:
    return json.dumps(scheme.to_dict(), sort_keys=True)


def _fingerprint(layers: list[Layer], batches: list[Any] | None) -> str:
    """Of the weights' shapes and some of their values, and of the data."""
    digest = hashlib.sha256()
    for layer in layers:
        weight = layer.weight.detach().flatten()
        digest.update(f"{layer.name} {tuple(layer.weight.shape)} {weight.dtype}".encode())
        _add(digest, weight[:: max(1, len(weight) // 4096)])
    digest.update(str(None if batches is None else len(batches)).encode())
    _add(digest, batches)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        digest.update(ctypes.string_at(value.data_ptr(), value.nbytes))
    elif isinstance(value, Mapping):
        for name in value:
            digest.update(str(name).encode())
            _add(digest, value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())


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
