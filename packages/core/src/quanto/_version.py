# SPDX-License-Identifier: Apache-2.0
"""The version of quanto-core, read by the build and by saved files."""

__version__ = "0.1.0"
