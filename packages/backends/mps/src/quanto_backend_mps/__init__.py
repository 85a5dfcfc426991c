# SPDX-License-Identifier: Apache-2.0
"""quanto's kernels for Apple GPUs, in Metal. Installing the package is all; see `quanto_backend_mps.plugin`."""

from ._version import __version__

__all__ = ["__version__"]
