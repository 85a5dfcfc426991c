# SPDX-License-Identifier: Apache-2.0
"""Device code: Triton kernels, and nothing that runs on the host."""
