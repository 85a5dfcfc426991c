# SPDX-License-Identifier: Apache-2.0
"""The host's side of the kernels: checks, shapes, and which kernel with how many threads."""
