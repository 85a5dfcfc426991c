# SPDX-License-Identifier: Apache-2.0
"""What `bench/accuracy.py` measures language models with: rows, their table, their picture."""
