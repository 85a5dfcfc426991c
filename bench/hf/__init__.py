# SPDX-License-Identifier: Apache-2.0
"""What `bench/transformers.py` measures: loading, texts, caches of keys and values, real models."""
