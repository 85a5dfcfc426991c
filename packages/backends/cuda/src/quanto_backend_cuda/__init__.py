# SPDX-License-Identifier: Apache-2.0
"""quanto's kernels for NVIDIA GPUs, in Triton. Installing the package is all; see `quanto_backend_cuda.plugin`."""

from ._version import __version__

__all__ = ["__version__"]
