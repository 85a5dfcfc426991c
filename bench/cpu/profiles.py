# SPDX-License-Identifier: Apache-2.0
"""The processors that a process can be shown: the one that is there, and the same without what came after AVX2."""

from __future__ import annotations

import os

from .native import mask_to_avx2

__all__ = ["PROFILES", "apply", "masked"]

PROFILES = {
    "avx2": "AVX2 and FMA alone, to every library: CPUID hides AVX-512, VNNI and AMX",
    "native": "all that the processor has",
}
_MASKED = "QUANTO_BENCH_MASKED"
# What libraries ask where CPUID cannot be hidden: torch, MKL, oneDNN, FBGEMM. onnxruntime and ggml ask CPUID alone.
_ASKED = {
    "QUANTO_CPU_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
}


def apply(profile: str) -> str:
    """Shows this process a processor; before torch is imported.

    Returns:
        What came of it: a sentence for the report.
    """
    if profile == "native":
        return PROFILES["native"]
    if mask_to_avx2():
        os.environ[_MASKED] = "1"
        return PROFILES["avx2"]
    os.environ.update(_ASKED)
    return "AVX2 to quanto, torch, MKL, oneDNN and FBGEMM; onnxruntime and ggml use all that this processor has"


def masked() -> bool:
    """Whether this process sees AVX2 alone."""
    return os.environ.get(_MASKED) == "1"
