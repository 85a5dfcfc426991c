# SPDX-License-Identifier: Apache-2.0
"""Measuring what quantization costs in quality."""

from .perplexity import Perplexity, perplexity

__all__ = ["Perplexity", "perplexity"]
