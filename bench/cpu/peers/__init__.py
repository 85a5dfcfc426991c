# SPDX-License-Identifier: Apache-2.0
"""Other libraries. A module's `candidates()` raises `Missing` or ImportError where its library is not there."""
