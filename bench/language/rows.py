# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: how each quantizes a model, and with which data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import quanto
from quanto.algorithms import Pipeline
from quanto.nn import QModule

from ..peers import PEERS
from ..peers.weights import HEAD

__all__ = ["Row", "bits_per_weight", "build", "rows"]

SEED = 0
FREE = ("absmax", "minmax", "mse", "hqq", "mse int", "hqq int")  # int: with whole zero points
CALIBRATED = ("awq", "gptq", "autoround", "best")
FINE = 64  # group size of 8-bit weights where a scale per channel is too coarse
#: qtype of weights and activations -> the pipelines that are tried
DYNAMIC: dict[str, tuple[tuple[str, ...], ...]] = {
    "int8": ((), ("smooth",), ("rotate", "smooth"), ("smooth", "gptq")),
    "float8": ((), ("gptq",), ("smooth", "gptq"), ("gptq", "tune")),
}
#: what the samples of a calibrated row are: the first sample text, text that the model draws, four times as much of it,
#: all texts and drawn ones
TEXT, DRAWN, MANY, MIXED = "", "drawn", "drawn, four times", "mixed"


@dataclass(frozen=True)
class Row:
    """One way to quantize.

    Attributes:
        label: in the table.
        fields: of the scheme; none for peers and for planned rows.
        steps: of the pipeline, if any.
        data: which samples.
        static: whether activations are calibrated.
        planned: stored bits per weight on average, for planned rows.
        peer: another library's, by the name of the row.
    """

    label: str
    fields: tuple[tuple[str, Any], ...] = ()
    steps: tuple[str, ...] = ()
    data: str = TEXT
    static: bool = False
    planned: float | None = None
    peer: bool = False

    @property
    def activations(self) -> bool:
        """Whether activations are quantized too."""
        return "activations" in dict(self.fields)


def rows(groups: Mapping[int, int | None], planned: Sequence[float], peers: bool = True) -> list[Row]:
    """All rows.

    Args:
        groups: width -> group size; None for a scale per channel.
        planned: averages of bits that are planned.
        peers: whether other libraries are among them.
    """
    out = []
    for bits, group in groups.items():
        named = f"int{bits}" + (f" g{group}" if group else "")
        fields: dict[str, Any] = {"weights": f"int{bits}", "scale_dtype": "float16"}
        fields |= {"group_size": group} if group else {}
        for name in FREE:
            algorithm, _, whole = name.partition(" ")
            own = {**fields, "algorithm": algorithm} | ({"zero_point": whole} if whole else {})
            if bits < 8 or not whole:
                out.append(Row(f"{named} {name}", _fields(own)))
        steps = CALIBRATED if bits < 8 else ("gptq",)
        out += [Row(f"{named} {step}", _fields(fields), (step,)) for step in steps]
        if bits < 8:
            for data in (DRAWN, MANY, MIXED):
                out += [Row(f"{named} {step} ({data})", _fields(fields), (step,), data) for step in ("gptq", "best")]
    for bits_each in planned:
        out += [Row(f"planned {bits_each:g} {s}", steps=(s,), planned=bits_each) for s in ("hqq", "gptq", "best")]
        out += [
            Row(f"planned {bits_each:g} {s} ({DRAWN})", steps=(s,), data=DRAWN, planned=bits_each)
            for s in ("gptq", "best")
        ]
    grouped = {"weights": "int8", "scale_dtype": "float16", "group_size": FINE}
    out += [Row(f"int8 g{FINE} {name}", _fields({**grouped, "algorithm": name})) for name in ("absmax", "mse")]
    for qtype in ("int8", "float8"):
        both = _fields({"weights": qtype, "activations": qtype, "dynamic": True})
        ways = DYNAMIC[qtype]
        out += [Row(" ".join((f"{qtype} x {qtype} dynamic", *steps)), both, steps) for steps in ways]
    still = _fields({"weights": "int8", "activations": "int8"})
    for steps in ((), ("smooth",), ("smooth", "gptq")):
        out.append(Row(" ".join(("int8 x int8 static", *steps)), still, steps, static=True))
    return out + [Row(label, peer=True) for label in PEERS if peers]


def _fields(fields: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(fields.items())


def bits_per_weight(model: Any) -> float:
    """Codes, scales and zero points, in bits per quantized weight."""
    bits = weights = 0
    for module in model.modules():
        if isinstance(module, QModule) and module.frozen:
            for name in module._slots:
                q = module.qtensor(name)
                bits, weights = bits + 8 * q.nbytes, weights + q.numel()
    return bits / weights


def build(row: Row, model: Any, samples: Mapping[str, list[torch.Tensor]]) -> tuple[float, float]:
    """Quantizes and freezes a float model in place; returns its bits per weight and the seconds that it took."""
    batches = samples[row.data]
    start = time.perf_counter()
    if row.peer:
        return PEERS[row.label](model, batches), time.perf_counter() - start
    torch.manual_seed(SEED)
    if row.planned is not None:
        _plan(row, model, batches)
    else:
        quanto.quantize(model, exclude=[HEAD], **dict(row.fields))
    if row.steps and row.steps != ("hqq",):
        Pipeline(*row.steps).run(model, batches, progress=False)
    if row.static:
        with torch.no_grad(), quanto.Calibration(streamline=True):
            for batch in batches:
                model(batch)
    quanto.freeze(model, progress=False)
    return bits_per_weight(model), time.perf_counter() - start


def _plan(row: Row, model: Any, batches: list[torch.Tensor]) -> None:
    """Plans what is to be rounded as the row's steps do."""
    free = row.steps == ("hqq",)
    shared: dict[str, Any] = {"scale_dtype": "float16", **({"algorithm": "hqq"} if free else {})}
    candidates = [
        quanto.Scheme("int2", group_size=64, **shared),
        quanto.Scheme("int3", **shared),
        quanto.Scheme("int4", **shared),
        quanto.Scheme("int8", scale_dtype="float16"),
    ]
    found = quanto.plan(
        model,
        batches[:4] if free else batches,
        bits=row.planned,
        candidates=candidates,
        exclude=HEAD,
        calibrated=not free,
        progress=False,
    )
    quanto.quantize(model, rules=found.rules, exclude=[HEAD])
