# SPDX-License-Identifier: Apache-2.0
"""Other libraries' quantization of the same model, each with its bits per weight; imported only when measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["PEERS"]

Peer = Callable[[Any], tuple[Any, float]]


def _optimum(name: str, bits: float) -> Peer:
    """optimum-quanto in groups of 128, scale and shift in float32 here: counted as the 16 bits they usually have."""

    def run(model: Any) -> tuple[Any, float]:
        from optimum import quanto as peer

        peer.quantize(model, weights=getattr(peer, name), exclude=["lm_head"])
        peer.freeze(model)
        return model, bits

    return run


def _torchao(name: str, bits: float, **options: Any) -> Peer:
    def run(model: Any) -> tuple[Any, float]:
        from torchao import quantization

        config = getattr(quantization, name)(**options)
        quantization.quantize_(model, config, filter_fn=lambda m, n: isinstance(m, nn.Linear) and "lm_head" not in n)
        return model, bits

    return run


def _hqq(bits: int, group: int) -> Peer:
    def run(model: Any) -> tuple[Any, float]:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        config = BaseQuantizeConfig(nbits=bits, group_size=group)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and "lm_head" not in name:
                parent, _, leaf = name.rpartition(".")
                made = HQQLinear(module, config, compute_dtype=module.weight.dtype, device="cpu")
                setattr(model.get_submodule(parent), leaf, made)
        return model, bits + 32 / group

    return run


#: label -> what quantizes a float model in place and says its bits per weight
PEERS: dict[str, Peer] = {
    "optimum-quanto int8": _optimum("qint8", 8.03),
    "optimum-quanto int4": _optimum("qint4", 4.25),
    "optimum-quanto int2": _optimum("qint2", 2.25),
    "torchao int8": _torchao("Int8WeightOnlyConfig", 8.03),
    "torchao intx 4 bits g128": _torchao("IntxWeightOnlyConfig", 4.25),
    "hqq 4 bits g128": _hqq(4, 128),
    "hqq 3 bits g128": _hqq(3, 128),
    "hqq 2 bits g64": _hqq(2, 64),
}
