# SPDX-License-Identifier: Apache-2.0
"""`QExperts`: a mixture-of-experts layer whose weights are quantized, computed by the grouped linear operator."""

from __future__ import annotations

from quanto.nn import QParameters

__all__ = ["QExperts"]


class QExperts(QParameters):
    """An experts module of transformers with quantized parameters."""
