# SPDX-License-Identifier: Apache-2.0
"""Version of quanto-backend-cpu."""

__version__ = "0.1.0"
