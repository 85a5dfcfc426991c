# SPDX-License-Identifier: Apache-2.0
"""The version; transformers and diffusers ask for more than 0.2.5."""

__version__ = "0.3.0"
