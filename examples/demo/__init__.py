# SPDX-License-Identifier: Apache-2.0
"""Quantizes a real language model and shows what it costs and gains: `python -m demo` in this folder's parent."""
