# SPDX-License-Identifier: Apache-2.0
"""What `bench/diffusers.py` measures with: data, similarity of pictures, and a transformer of Flux's real width."""
