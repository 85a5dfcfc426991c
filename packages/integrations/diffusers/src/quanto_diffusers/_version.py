# SPDX-License-Identifier: Apache-2.0
"""The version of quanto-diffusers, read by the build."""

__version__ = "0.1.0"
