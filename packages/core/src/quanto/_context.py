# SPDX-License-Identifier: Apache-2.0
"""How much a language model reads at a time."""

from __future__ import annotations

import sys

from torch import nn

__all__ = ["context_limit"]


def context_limit(model: nn.Module) -> int:
    """How many tokens a language model takes, by what its configuration calls it; very many if it doesn't say."""
    config = getattr(model, "config", None)
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx"))
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), sys.maxsize)
