# SPDX-License-Identifier: Apache-2.0
"""Libraries that quantize a `torch.nn.Linear`: optimum-quanto, torchao, bitsandbytes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..candidate import Built, Candidate, Missing, TorchBuilt, count
from ..problem import Problem

__all__ = ["bitsandbytes", "optimum_quanto", "torchao"]

F32, BF16 = torch.float32, torch.bfloat16


def optimum_quanto() -> Iterator[Candidate]:
    """qint8, qint4, qint2 and qfloat8, as `quantize` and `freeze` leave them."""
    try:
        from optimum import quanto as peer
    except ImportError as error:
        raise Missing(str(error)) from error

    def convert(qtype: Any) -> Callable[[nn.Linear], tuple[nn.Module, Tensor, int]]:
        def converted(layer: nn.Linear) -> tuple[nn.Module, Tensor, int]:
            model = nn.Sequential(layer)
            peer.quantize(model, weights=qtype)
            peer.freeze(model)
            weight = model[0].weight
            parts = [getattr(weight, name, None) for name in ("_data", "_scale", "_shift")]
            nbytes = sum(_bytes(part) for part in parts)
            return model[0], weight.dequantize(), nbytes

        return converted

    for qtype, weights in ((peer.qint8, "int8"), (peer.qint4, "int4 g128"), (peer.qint2, "int2 g128")):
        for dtype in (F32, BF16):
            yield _module("optimum-quanto", qtype.name, weights, "exact", dtype, convert(qtype))
    yield _module("optimum-quanto", "qfloat8", "float8_e4m3fn", "exact", F32, convert(peer.qfloat8_e4m3fn))


def torchao() -> Iterator[Candidate]:
    """int8 weight-only and dynamic, int4 in torchao's layout for CPUs with float and with int8 activations; eager."""
    try:
        import torchao.quantization as peer
    except ImportError as error:
        raise Missing(str(error)) from error

    def convert(config: Any) -> Callable[[nn.Linear], tuple[nn.Module, Tensor | None, int]]:
        def converted(layer: nn.Linear) -> tuple[nn.Module, Tensor | None, int]:
            size = layer.weight.numel()
            model = nn.Sequential(layer)
            peer.quantize_(model, config)
            bits = 4 if "Int4" in type(config).__name__ else 8
            weight = model[0].weight
            values = weight.dequantize() if bits == 8 else None
            return model[0], values, size * bits // 8

        return converted

    for dtype in (F32, BF16):
        yield _module("torchao", "int8 weight only", "int8", "exact", dtype, convert(peer.Int8WeightOnlyConfig()))
    dynamic = peer.Int8DynamicActivationInt8WeightConfig()
    yield _module("torchao", "int8 dynamic activations", "int8", "integer", F32, convert(dynamic))
    try:
        from torchao.prototype.quantization.int4 import inference_workflow as int4
    except ImportError:
        return
    only = int4.PrototypeInt4WeightOnlyConfig(set_inductor_config=False)
    yield _module("torchao", "int4 opaque, weight only", "int4 g128", "exact", BF16, convert(only))
    both = int4.Int8DynamicActivationInt4WeightConfig(group_size=128, set_inductor_config=False)
    yield _module("torchao", "int4, int8 dynamic activations", "int4 g128", "integer", F32, convert(both))


def bitsandbytes() -> Iterator[Candidate]:
    """nf4, fp4 and LLM.int8."""
    try:
        import bitsandbytes as peer
    except ImportError as error:
        raise Missing(str(error)) from error

    def four(kind: str, dtype: torch.dtype) -> Callable[[nn.Linear], tuple[nn.Module, Tensor, int]]:
        def converted(layer: nn.Linear) -> tuple[nn.Module, Tensor, int]:
            made = peer.nn.Linear4bit(
                layer.in_features, layer.out_features, bias=False, quant_type=kind, compute_dtype=dtype
            )
            made.weight = peer.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type=kind)
            made = made.to("cpu")
            state = made.weight.quant_state
            values = peer.functional.dequantize_4bit(made.weight.data, state)
            return made, values, made.weight.nbytes + state.absmax.nbytes

        return converted

    def eight(layer: nn.Linear) -> tuple[nn.Module, Tensor | None, int]:
        made = peer.nn.Linear8bitLt(layer.in_features, layer.out_features, bias=False, has_fp16_weights=False)
        made.weight = peer.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        made = made.to("cpu")
        return made, None, layer.weight.numel()

    for kind in ("nf4", "fp4"):
        for dtype in (F32, BF16):
            yield _module("bitsandbytes", kind, f"{kind} g64", "exact", dtype, four(kind, dtype))
    yield _module("bitsandbytes", "LLM.int8", "int8", "integer", BF16, eight)


def _copies(made: nn.Module, number: int) -> list[tuple[nn.Module]]:
    """Copies; none of a module that cannot be copied, which is then called once a turn."""
    try:
        return [(copy.deepcopy(made),) for _ in range(number)]
    except (RuntimeError, NotImplementedError):
        return []


def _bytes(part: Any) -> int:
    inner = getattr(part, "_data", part)
    return inner.numel() * inner.element_size() if isinstance(inner, Tensor) else 0


def _module(
    source: str,
    name: str,
    weights: str,
    compute: str,
    dtype: torch.dtype,
    convert: Callable[[nn.Linear], tuple[nn.Module, Tensor | None, int]],
) -> Candidate:
    def build(problem: Problem, megabytes: int) -> Built:
        layer = nn.Linear(problem.k, problem.n, bias=False, device="meta")
        layer.weight = nn.Parameter(problem.values.to(dtype), requires_grad=False)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            made, values, nbytes = convert(layer)
            made = made.eval().requires_grad_(False)
            # Most take 20 ms and more a call: a few copies are enough for that no cache holds one.
            copies = [(made,), *_copies(made, len(list(count(nbytes, min(megabytes, 64)))) - 1)]
        reference = problem.values if values is None else values
        remark = "error with that of rounding the weight" if values is None else ""
        return TorchBuilt(lambda x, module: module(x), copies, nbytes, lambda: reference, remark)

    return Candidate(source, name, weights, compute, dtype, build)
