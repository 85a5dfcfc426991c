# SPDX-License-Identifier: Apache-2.0
"""llm-compressor: GPTQ and AWQ with the same calibration tokens as the calibrated rows of quanto."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .weights import HEAD, Peer, count

__all__ = ["LLM_COMPRESSOR"]


def _compressor(method: str, bits: int, symmetric: bool, group: int = 128) -> Peer:
    def run(model: Any, batches: list[Tensor]) -> float:
        import llmcompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from llmcompressor.modifiers.awq import AWQModifier
        from llmcompressor.modifiers.quantization import GPTQModifier

        weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=group)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        modifier = {"gptq": GPTQModifier, "awq": AWQModifier}[method]
        stored = count(model, bits, 16 if symmetric else 16 + bits, group)
        alone: Any = nullcontext()
        if not torch.accelerator.is_available():  # llm-compressor 0.14 pins memory for an accelerator all the same
            alone = patch("llmcompressor.pipelines.cache.IntermediatesCache.pin_memory", lambda cache, index: None)
        blocks = [block.unsqueeze(0) for batch in batches for block in batch]
        data = [{"input_ids": block, "attention_mask": torch.ones_like(block)} for block in blocks]
        with alone:
            llmcompressor.oneshot(
                model=model,
                dataset=torch.utils.data.DataLoader(data, batch_size=None),
                recipe=[modifier(config_groups={"all": scheme}, ignore=[HEAD])],
                num_calibration_samples=len(data),
                max_seq_length=blocks[0].shape[-1],
            )
        return stored

    return run


LLM_COMPRESSOR: dict[str, Peer] = {
    "llm-compressor gptq 4 bits g128": _compressor("gptq", 4, symmetric=True),
    "llm-compressor gptq 4 bits g128 asymmetric": _compressor("gptq", 4, symmetric=False),
    "llm-compressor awq 4 bits g128 asymmetric": _compressor("awq", 4, symmetric=False),
    "llm-compressor gptq 3 bits g128 asymmetric": _compressor("gptq", 3, symmetric=False),
}
