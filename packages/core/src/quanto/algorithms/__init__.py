# SPDX-License-Identifier: Apache-2.0
"""Algorithms that need sample data, and the pipeline that runs them block by block."""

from .autoround import AutoRound
from .awq import AWQ
from .gptq import GPTQ
from .low_rank import LowRank
from .pipeline import Pipeline, calibrate_weights
from .rotate import Rotate
from .samples import generate_samples
from .smooth import SmoothQuant
from .step import Block, Step
from .tune import Tune

__all__ = [
    "AWQ",
    "GPTQ",
    "AutoRound",
    "Block",
    "LowRank",
    "Pipeline",
    "Rotate",
    "SmoothQuant",
    "Step",
    "Tune",
    "calibrate_weights",
    "generate_samples",
]
