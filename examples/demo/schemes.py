# SPDX-License-Identifier: Apache-2.0
"""What the demo compares: each scheme is what is handed to `quanto.quantize`."""

from __future__ import annotations

from typing import Any

__all__ = ["EXCLUDE", "FLOAT", "SCHEMES", "SHOWN"]

FLOAT = "float"

# int4 never gets groups of 32 here: that is the grid on which these weights were stored before (Q4_1), and finding it
# again would look like 4 bits without loss. int2 has 4 steps per group, so that it needs the smaller groups.
SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8"},
    "float8": {"weights": "float8"},
    "int4": {"weights": "int4", "group_size": 128},
    "int2": {"weights": "int2", "group_size": 32},
}

# The head of SmolLM2 is its embedding, used twice: both stay float.
EXCLUDE = ["lm_head", "model.embed_tokens"]

# The schemes whose continuation of the prompt is printed.
SHOWN = (FLOAT, "int8", "int4")
